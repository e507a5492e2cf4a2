"""The build cache: what a step gave when it last ran on the same image with the same inputs.

An entry is a small file named by the digest of everything that the step's result depends on. It
holds the image after the step as plain data. Entries that are used become younger; old ones go with
the garbage, and layers that an entry names stay as long as the entry.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Awaitable, Callable, Sequence

from ..base import Image
from ..store import Store

VERSION = "1"


class Cache:
    """Steps that ran before; switched off it forgets everything but still learns."""

    def __init__(self, store: Store, *, enabled: bool) -> None:
        self._store = store
        self._enabled = enabled

    @staticmethod
    def key(image: Image, parts: Sequence[str]) -> str:
        return hashlib.sha256("\0".join([VERSION, image.digest, *parts]).encode()).hexdigest()

    def find(self, key: str) -> Image | None:
        """The image after the step, if all its layers are still here."""
        if not self._enabled:
            return None
        path = self._store.root / "cache" / key
        try:
            image = Image.from_manifest(path.read_bytes())
            os.utime(path)
        except (OSError, ValueError, KeyError, TypeError):
            return None
        return image if all(self._store.has_layer(x.digest) for x in image.layers) else None

    async def of(
        self,
        image: Image,
        parts: Sequence[str],
        work: Callable[[], Awaitable[Image]],
        say: Callable[[str], None],
    ) -> Image:
        """The image after a step: known, or worked for and kept."""
        key = self.key(image, parts)
        known = self.find(key)
        if known is not None:
            say("    from the cache")
            return known
        made = await work()
        self.keep(key, made)
        return made

    def keep(self, key: str, image: Image) -> None:
        data = json.loads(image.manifest())
        self._store.write(f"cache/{key}", json.dumps(data).encode())
