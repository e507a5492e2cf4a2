"""Reads EROFS images that :mod:`.erofs` wrote: the tree at once, the data when it is asked for."""

from __future__ import annotations

import os
import stat
import struct
from collections.abc import Iterator
from pathlib import Path

from .erofs import (
    BLOCK,
    CHUNK_BYTES,
    DIRENT,
    INLINE,
    INODE,
    MAGIC,
    NID_BYTES,
    NO_BLOCK,
    SUPERBLOCK,
    SUPERBLOCK_AT,
    XATTR_HEADER_BYTES,
    XATTR_PREFIXES,
)
from .errors import ImageError
from .tree import Node

_XATTR_ENTRY = struct.Struct("<BBH")
_NAMES = {index: prefix for prefix, index in XATTR_PREFIXES}


def read_tree(path: Path) -> Node:
    """The tree of a layer.

    Raises:
        ImageError: it is no image of ours, or damaged.
    """
    with path.open("rb") as file:
        data = os.pread(file.fileno(), SUPERBLOCK.size, SUPERBLOCK_AT)
        if len(data) < SUPERBLOCK.size or SUPERBLOCK.unpack(data)[0] != MAGIC:
            raise ImageError(f"{path} is no EROFS image")
        fields = SUPERBLOCK.unpack(data)
        meta_at, size = fields[10] * BLOCK, os.fstat(file.fileno()).st_size
        if size != fields[9] * BLOCK or meta_at >= size:
            raise ImageError(f"{path} is cut off or damaged")
        meta = os.pread(file.fileno(), size - meta_at, meta_at)
        try:
            return _Reader(path, file.fileno(), meta, meta_at).tree(fields[5])
        except (struct.error, IndexError, KeyError, ValueError) as error:
            raise ImageError(f"{path} is damaged: {error}") from error


class _Reader:
    def __init__(self, path: Path, fd: int, meta: bytes, meta_at: int) -> None:
        self._path = str(path)
        self._fd = fd
        self._meta = meta
        self._meta_at = meta_at
        self._nodes: dict[int, Node] = {}

    def tree(self, root_nid: int) -> Node:
        root, listing = self._inode(root_nid)
        pending = [(root, listing)]
        while pending:
            node, listing = pending.pop()
            for name, nid in _entries(listing):
                if name in (b".", b".."):
                    continue
                known = self._nodes.get(nid)
                if known is None:
                    known, below = self._inode(nid)
                    self._nodes[nid] = known
                    if known.is_folder:
                        pending.append((known, below))
                elif known.is_folder:
                    raise ValueError("a folder has two parents")
                node.children[name] = known
        return root

    def _inode(self, nid: int) -> tuple[Node, bytes]:
        at = nid * NID_BYTES
        head = INODE.unpack_from(self._meta, at)
        layout, xattr_count, mode, _, size, start, _, uid, gid, seconds, nanoseconds, _ = head
        if size > self._meta_at + len(self._meta):
            raise ValueError(f"an inode of {size} bytes")
        node = Node(mode, uid, gid, seconds * 10**9 + nanoseconds)
        at += INODE.size
        if xattr_count:
            end = at + XATTR_HEADER_BYTES + 4 * (xattr_count - 1)
            node.xattrs = dict(_xattrs(self._meta[at + XATTR_HEADER_BYTES : end]))
            at = end
        tail = size % BLOCK if layout >> 1 == INLINE else 0
        if node.is_file:
            node.size, node.block, node.source = size, start, self._path
            node.offset = self._meta_at + at if tail else 0
            return node, b""
        if not (node.is_folder or node.is_link):
            node.rdev = start
            return node, b""
        whole = b"" if start == NO_BLOCK else os.pread(self._fd, size - tail, start * BLOCK)
        content = whole + self._meta[at : at + tail]
        if node.is_link:
            node.target = content
        return node, content


def _entries(listing: bytes) -> Iterator[tuple[bytes, int]]:
    for start in range(0, len(listing), BLOCK):
        block = listing[start : start + BLOCK]
        count = DIRENT.unpack_from(block, 0)[1] // DIRENT.size
        heads = [DIRENT.unpack_from(block, DIRENT.size * index) for index in range(count)]
        ends = [head[1] for head in heads[1:]] + [len(block)]
        for (nid, offset, _, _), end in zip(heads, ends, strict=True):
            yield block[offset:end].rstrip(b"\0"), nid


def _xattrs(area: bytes) -> Iterator[tuple[str, bytes]]:
    at = 0
    while at < len(area):
        name_len, index, value_len = _XATTR_ENTRY.unpack_from(area, at)
        at += _XATTR_ENTRY.size
        name = _NAMES[index] + os.fsdecode(area[at : at + name_len])
        yield name, area[at + name_len : at + name_len + value_len]
        at += name_len + value_len
        at += -at % 4


def chunks(node: Node) -> Iterator[bytes]:
    """The content of a file that :func:`read_tree` found."""
    assert stat.S_ISREG(node.mode), "only files have content"
    tail = node.size % BLOCK if node.offset else 0
    whole = node.size - tail
    with open(node.source, "rb") as file:  # noqa: PTH123 - the path is kept as text
        for offset in range(0, whole, CHUNK_BYTES):
            count = min(CHUNK_BYTES, whole - offset)
            yield _read(file.fileno(), node, count, node.block * BLOCK + offset)
        if tail:
            yield _read(file.fileno(), node, tail, node.offset)


def _read(fd: int, node: Node, count: int, at: int) -> bytes:
    data = os.pread(fd, count, at)
    if len(data) != count:
        raise ImageError(f"{node.source} is damaged: data at {at} is missing")
    return data


def content(node: Node) -> bytes:
    return b"".join(chunks(node))
