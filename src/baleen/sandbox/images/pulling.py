"""``baleen image pull``: an image of a registry comes into the store."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from .base import short
from .limits import Limits
from .oci import convert_layer, image_of, own_architecture, plain_digest
from .reference import Reference
from .registry import Registry
from .store import Store

PARALLEL = 3

OnBytes = Callable[[str, int, int], None]
"""Is told of a blob: its short digest, bytes here, bytes in all."""


def _quiet(_blob: str, _here: int, _size: int) -> None:
    pass


def pull(
    store: Store,
    name: str,
    *,
    alias: str | None = None,
    architecture: str | None = None,
    insecure: bool = False,
    limits: Limits | None = None,
    progress: OnBytes = _quiet,
) -> str:
    """Pulls and names an image; returns its digest. Layers that are here are not fetched again.

    Raises:
        PullError: the registry refused, vanished, or sent other bytes than it announced.
        ImageError: the image is not offered for this architecture, or damaged.
    """
    reference = Reference.parse(name)
    registry = Registry(reference, insecure=insecure)
    try:
        with store.writing():
            manifest = registry.manifest(architecture or own_architecture())
            config = registry.config(manifest["config"])
            layers = _fetch_all(store, registry, manifest, config, limits or Limits(), progress)
            image = image_of(manifest, config, lambda _, diff: layers[plain_digest(diff)])
            return store.add_image(image, alias or name)
    finally:
        registry.close()


def _fetch_all(
    store: Store,
    registry: Registry,
    manifest: Mapping[str, Any],
    config: Mapping[str, Any],
    limits: Limits,
    progress: OnBytes,
) -> dict[str, str]:
    """Layers by diff id, several on the way at once."""

    def fetch(blob: Mapping[str, Any], diff_id: str) -> str:
        known = store.converted(diff_id)
        if known is not None:
            return known
        digest = plain_digest(blob["digest"])
        partial = store.root / "partial" / f"blob-{digest}"
        size = blob["size"]
        registry.download(
            blob["digest"], partial, size, lambda here: progress(short(digest), here, size)
        )
        made = _convert(store, partial, diff_id, limits)
        partial.unlink(missing_ok=True)
        return made

    diff_ids = [plain_digest(x) for x in (config.get("rootfs") or {}).get("diff_ids", [])]
    pairs = dict(zip(diff_ids, manifest["layers"], strict=False))
    with ThreadPoolExecutor(PARALLEL) as pool:
        made = pool.map(lambda pair: fetch(pair[1], pair[0]), pairs.items())
        return dict(zip(pairs, made, strict=True))


def _convert(store: Store, partial: Path, diff_id: str, limits: Limits) -> str:
    with partial.open("rb") as blob:
        return convert_layer(store, blob, partial.stat().st_size, diff_id, limits)
