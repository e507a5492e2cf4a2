"""Writes EROFS images, uncompressed, in one pass over the data and without rights of any kind.

Layout of a file::

    block 0      superblock at 1024
    block 1..    whole blocks of files as they come, then those of folders and long links
    meta         inodes with their attributes and inline tails, the root first

Inodes are the 64-byte kind. The last part of a file lies behind its inode where both fit into one
block, otherwise in a block of its own. Same tree, same bytes: nothing depends on time or host.

Source: the kernel's ``fs/erofs/erofs_fs.h`` (format) and what its reader insists on.
"""

from __future__ import annotations

import errno
import hashlib
import os
import stat
import struct
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import BinaryIO

from .errors import ImageError
from .tree import Node, walk

BLOCK = 4096
MAGIC = 0xE0F5E1E2
SUPERBLOCK_AT = 1024
INODE = struct.Struct("<HHHHQIIIIQII16x")
SUPERBLOCK = struct.Struct("<IIIBBHQQIIII16s16sI44x")
DIRENT = struct.Struct("<QHBB")
NO_BLOCK = 0xFFFFFFFF
PLAIN, INLINE = 0, 2
CHUNK_BYTES = 1 << 20
MTIME_IS_KEPT = 2
XATTR_HEADER_BYTES = 12
NID_BYTES = 32
XATTR_PREFIXES = (
    ("user.", 1),
    ("trusted.", 4),
    ("security.", 6),
)
KINDS = {
    stat.S_IFREG: 1,
    stat.S_IFDIR: 2,
    stat.S_IFCHR: 3,
    stat.S_IFBLK: 4,
    stat.S_IFIFO: 5,
    stat.S_IFSOCK: 6,
    stat.S_IFLNK: 7,
}
_ZEROS = bytes(CHUNK_BYTES)


class ImageWriter:
    """Writes one image: data as it comes, then :meth:`finish` with the tree."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self._fd = file.fileno()
        self._blocks = 1

    def add(self, node: Node, read: Callable[[int], bytes], size: int) -> None:
        """Takes in a file's data: ``read`` is called until ``size`` bytes have come.

        The node's attributes must be known, since they decide where its last bytes fit.

        Raises:
            ImageError: the data ends early, or the disk is full.
        """
        tail = size % BLOCK
        if not _fits_inline(node, tail):
            tail = 0
        node.size, node.block = size, self._blocks if size > tail else NO_BLOCK
        at = self._blocks * BLOCK
        kept = b""
        left = size
        while left:
            data = read(min(CHUNK_BYTES, left))
            if not data:
                raise ImageError(f"a file's data ends after {size - left} of {size} bytes")
            left -= len(data)
            inline = max(0, min(len(data), tail - left))
            if inline:
                kept += data[-inline:]
                data = data[:-inline]
            self._write(data, at)
            at += len(data)
        node.tail = kept
        self._blocks = -(-at // BLOCK)

    def _write(self, data: bytes, at: int) -> None:
        if data == (_ZEROS if len(data) == CHUNK_BYTES else bytes(len(data))):
            return  # a hole: reads as zeros and takes no room
        view = memoryview(data)
        try:
            while view:
                put = os.pwrite(self._fd, view, at)
                view, at = view[put:], at + put
        except OSError as error:
            if error.errno != errno.ENOSPC:
                raise
            raise ImageError("the disk is full", remedy="free space or `baleen image gc`") from None

    def append(self, data: bytes) -> int:
        """Appends whole blocks and returns the first one's number."""
        first = self._blocks
        self._write(data, first * BLOCK)
        self._blocks += -(-len(data) // BLOCK)
        return first

    def finish(self, root: Node) -> str:
        """Writes folders, inodes and superblock, and syncs; returns the SHA-256 of the file."""
        meta = _Metadata(root)
        data = meta.pack(self.append)
        meta_block = self.append(data)
        packed = SUPERBLOCK.pack(
            MAGIC,
            0,
            MTIME_IS_KEPT,
            BLOCK.bit_length() - 1,
            0,
            0,  # the root's inode is the first
            len(meta.nodes),
            0,
            0,
            self._blocks,
            meta_block,
            0,
            bytes(16),
            bytes(16),
            0,
        )
        self._write(packed, SUPERBLOCK_AT)
        os.ftruncate(self._fd, self._blocks * BLOCK)
        with ThreadPoolExecutor(1) as pool, open(self._fd, "rb", closefd=False) as file:
            synced = pool.submit(os.fdatasync, self._fd)  # the disk works while we hash
            file.seek(0)
            digest = hashlib.file_digest(file, "sha256").hexdigest()
            synced.result()
        return digest


class _Metadata:
    """Numbers the inodes, the root first, and packs them with what lies inline behind them."""

    def __init__(self, root: Node) -> None:
        self.nodes: list[Node] = []
        self._links: dict[int, int] = {}
        self._parents: dict[int, Node] = {id(root): root}
        self._collect(root)
        self._xattrs = {id(node): pack_xattrs(node.xattrs) for node in self.nodes}
        self._folders = {id(node): _blocks_of(node) for node in self.nodes if node.is_folder}
        self._nids: dict[int, int] = {}
        self._bytes = self._number()

    def _collect(self, root: Node) -> None:
        for _, node in walk(root):
            if id(node) not in self._links:
                self.nodes.append(node)
                self._links[id(node)] = 2 if node.is_folder else 0
            if not node.is_folder:
                self._links[id(node)] += 1
            for child in node.children.values():
                if child.is_folder:
                    self._parents[id(child)] = node
                    self._links[id(node)] += 1

    def _tail_bytes(self, node: Node) -> int:
        """How much lies inline behind a node's inode."""
        if node.is_file:
            return len(node.tail)
        if node.is_folder:
            names = self._folders[id(node)][-1]
            tail = sum(DIRENT.size + len(name) for name in names) % BLOCK
        else:
            tail = len(node.target)
        return tail if _fits_inline(node, tail) else 0

    def _number(self) -> int:
        at = 0
        for node in self.nodes:
            length = INODE.size + len(self._xattrs[id(node)]) + self._tail_bytes(node)
            if at % BLOCK + length > BLOCK >= length:
                at += BLOCK - at % BLOCK  # an inode and its tail lie in one block
            self._nids[id(node)] = at // NID_BYTES
            at += -(-length // NID_BYTES) * NID_BYTES
        return at

    def pack(self, append: Callable[[bytes], int]) -> bytes:
        """The metadata area; what does not lie inline goes through ``append`` first."""
        packed = bytearray(-(-self._bytes // BLOCK) * BLOCK)
        for node in self.nodes:
            start, size, tail = self._content(node, append)
            xattrs = self._xattrs[id(node)]
            at = self._nids[id(node)] * NID_BYTES
            seconds, nanoseconds = divmod(max(0, node.mtime_ns), 10**9)
            INODE.pack_into(
                packed,
                at,
                1 | (INLINE if tail else PLAIN) << 1,
                (len(xattrs) - XATTR_HEADER_BYTES) // 4 + 1 if xattrs else 0,
                node.mode,
                0,
                size,
                start,
                self._nids[id(node)] & 0xFFFFFFFF,
                node.uid,
                node.gid,
                seconds,
                nanoseconds,
                self._links[id(node)],
            )
            body = xattrs + tail
            packed[at + INODE.size : at + INODE.size + len(body)] = body
        return bytes(packed)

    def _content(self, node: Node, append: Callable[[bytes], int]) -> tuple[int, int, bytes]:
        """First block (or device number), size, inline tail."""
        if node.is_file:
            return node.block, node.size, node.tail
        if not (node.is_folder or node.is_link):
            return node.rdev, 0, b""
        data = self._listing(node) if node.is_folder else node.target
        tail = self._tail_bytes(node)
        whole = data[: len(data) - tail]
        return append(whole) if whole else NO_BLOCK, len(data), data[len(whole) :]

    def _listing(self, node: Node) -> bytes:
        blocks = self._folders[id(node)]
        padded = [self._pack_names(node, names).ljust(BLOCK, b"\0") for names in blocks[:-1]]
        return b"".join(padded) + self._pack_names(node, blocks[-1])

    def _pack_names(self, node: Node, names: list[bytes]) -> bytes:
        packed = bytearray()
        offset = DIRENT.size * len(names)
        for name in names:
            child = {b".": node, b"..": self._parents[id(node)]}.get(name)
            child = child or node.children[name]
            kind = KINDS[stat.S_IFMT(child.mode)]
            packed += DIRENT.pack(self._nids[id(child)], offset, kind, 0)
            offset += len(name)
        return bytes(packed) + b"".join(names)


def _fits_inline(node: Node, tail: int) -> bool:
    return INODE.size + len(pack_xattrs(node.xattrs)) + tail <= BLOCK


def _blocks_of(node: Node) -> list[list[bytes]]:
    """A folder's names in order, divided into the blocks that hold them."""
    blocks: list[list[bytes]] = [[]]
    used = 0
    for name in sorted([*node.children, b".", b".."]):
        if used + DIRENT.size + len(name) > BLOCK:
            blocks.append([])
            used = 0
        blocks[-1].append(name)
        used += DIRENT.size + len(name)
    return blocks


def pack_xattrs(xattrs: dict[str, bytes]) -> bytes:
    """The attribute area behind an inode; empty without attributes.

    Raises:
        ImageError: they do not fit into a block.
    """
    if not xattrs:
        return b""
    packed = bytearray(XATTR_HEADER_BYTES)
    for name, value in sorted(xattrs.items()):
        index, rest = _xattr_index(name)
        packed += struct.pack("<BBH", len(rest), index, len(value)) + rest + value
        packed += bytes(-len(packed) % 4)
    if len(packed) > BLOCK - INODE.size:
        raise ImageError(f"{len(packed)} bytes of extended attributes on a file, too many")
    return bytes(packed)


def _xattr_index(name: str) -> tuple[int, bytes]:
    for prefix, index in XATTR_PREFIXES:
        if name.startswith(prefix):
            return index, os.fsencode(name[len(prefix) :])
    raise ImageError(f"extended attribute {name!r} cannot be kept")
