"""What ``Sandbox.create`` is given, in the form in which a box's spec holds it.

Paths of the host are named from its root: the edge has another working folder.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path

from baleen.errors import UsageError

from .egress import network_to_wire
from .spec import Allowlist, Mount

MountSpec = tuple[str | os.PathLike[str], str] | tuple[str | os.PathLike[str], str, str]


def image_of(image: str | os.PathLike[str]) -> str:
    """An image's name, or the path of a folder."""
    text = os.fspath(image)
    return str(Path(text).expanduser().resolve()) if text.startswith((".", "/", "~")) else text


def toolkits_of(toolkits: Sequence[str]) -> tuple[str, ...]:
    """Names of images; a single one may come as it is."""
    return (toolkits,) if isinstance(toolkits, str) else tuple(toolkits)


def mount_of(mount: MountSpec) -> Mount:
    """A mount, read-only unless it says otherwise."""
    if isinstance(mount, str) or len(mount) not in (2, 3):
        raise UsageError(f"mount {mount!r} is not (source, target) or (source, target, mode)")
    return Mount(str(Path(mount[0]).resolve()), mount[1], mount[2] if len(mount) > 2 else "ro")


def network_of(network: str | Allowlist) -> str | tuple[str, ...]:
    """What the box may reach; a list is one of entries."""
    reachable = network_to_wire(network)
    return reachable if isinstance(reachable, str) else tuple(reachable)


def labels_of(labels: Mapping[str, str]) -> dict[str, str]:
    """A copy of the labels, which are texts."""
    is_fit = isinstance(labels, Mapping)
    if not is_fit or not all(isinstance(text, str) for pair in labels.items() for text in pair):
        raise UsageError(f"labels={labels!r} is no dict of texts")
    return dict(labels)
