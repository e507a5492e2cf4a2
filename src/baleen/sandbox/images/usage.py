"""What images take on the disk, and what they share."""

from __future__ import annotations

from collections import Counter
from typing import NamedTuple

from .gc import disk_bytes
from .store import Store


class Usage(NamedTuple):
    """One name of the store."""

    name: str
    digest: str
    layers: int
    bytes: int
    """Of all its layers."""
    unique_bytes: int
    """Of the layers that no other image has: what removing it would free."""

    @property
    def shared_bytes(self) -> int:
        return self.bytes - self.unique_bytes


def usage(store: Store) -> list[Usage]:
    """Every name with its sizes, by name."""
    images = {digest: store.image(digest) for digest in set(store.names().values())}
    users = Counter(
        layer for image in images.values() for layer in {x.digest for x in image.layers}
    )
    sizes = {layer: disk_bytes(store.layer_path(layer)) for layer in users}
    found = []
    for name, digest in sorted(store.names().items()):
        layers = {layer.digest for layer in images[digest].layers}
        unique = sum(sizes[layer] for layer in layers if users[layer] == 1)
        found.append(Usage(name, digest, len(layers), sum(sizes[x] for x in layers), unique))
    return found
