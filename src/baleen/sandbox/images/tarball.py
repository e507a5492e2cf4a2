"""Reads a layer's tar archive: OCI whiteouts, hard links, attributes, odd names, sparse files.

Nothing is unpacked to the host: entries become nodes of a tree in memory, their data goes straight
into the image. A path that climbs is refused, a link leads nowhere but into the tree.
"""

from __future__ import annotations

import os
import stat
import tarfile
from pathlib import Path
from typing import IO, cast

from .compression import DAMAGES
from .erofs import ImageWriter
from .errors import ImageError, UnsafeImageError
from .limits import Meter
from .tree import OPAQUE, Node, find, folder, hide, make_folders, parts_of, put

WHITEOUT = b".wh."
OPAQUE_MARK = b".wh..wh..opq"
_XATTR = "SCHILY.xattr."
_KEPT_XATTRS = ("user.", "security.capability")
_KINDS = {
    tarfile.CHRTYPE: stat.S_IFCHR,
    tarfile.BLKTYPE: stat.S_IFBLK,
    tarfile.FIFOTYPE: stat.S_IFIFO,
}
MAX_LINK_BYTES = 4095


def read_tar(
    stream: IO[bytes], writer: ImageWriter, meter: Meter, *, whiteouts: bool = True
) -> Node:
    """Reads an uncompressed archive into a tree, its data into ``writer``.

    Raises:
        UnsafeImageError: a path climbs out, or the archive is over its limits.
        ImageError: it is damaged.
    """
    root = folder()
    name = "the first entry"
    blocks = _Blocks(stream)
    data_end = 0
    try:
        with tarfile.open(fileobj=cast("IO[bytes]", blocks), mode="r|", errorlevel=2) as archive:
            for member in archive:
                name = member.name
                sparse = getattr(member, "sparse", None)
                real_bytes = sum(size for _, size in sparse) if sparse is not None else None
                size = member.size if member.isreg() else 0
                meter.entry(size, real_bytes)
                data_end = member.offset_data + (size if real_bytes is None else real_bytes)
                _take(archive, member, root, writer, whiteouts)
            if blocks.size < data_end or any(blocks.at(archive.offset)):
                raise tarfile.ReadError("it ends within an entry")
        while stream.read(1 << 20):  # what follows the archive belongs to its digest
            pass
    except (tarfile.TarError, *DAMAGES, ValueError) as error:
        if isinstance(error, OSError) and error.errno is not None:
            raise
        raise ImageError(f"the archive is damaged after {name!r}: {error}") from error
    return root


class _Blocks:
    """An archive in whole blocks.

    Some writers (umoci) leave out what fills the last one up, and Docker takes what they write. The
    standard library, for its part, takes a header that is cut or damaged for the end: so a look at
    the place where an archive ended says whether it did.
    """

    _KEPT_BYTES = 64 << 10

    def __init__(self, stream: IO[bytes]) -> None:
        self._stream = stream
        self.size = 0
        """Bytes that there were."""
        self._given = 0
        self._tail = b""

    def read(self, count: int) -> bytes:
        data = self._stream.read(count)
        self.size += len(data)
        if not data:
            data = bytes(-self._given % tarfile.BLOCKSIZE)
        self._given += len(data)
        self._tail = (self._tail + data)[-self._KEPT_BYTES :]
        return data

    def at(self, offset: int) -> bytes:
        """The block that was read last or nearly so; nothing where the archive ends before it."""
        start = offset - (self._given - len(self._tail))
        return self._tail[start : start + tarfile.BLOCKSIZE]


def _take(
    archive: tarfile.TarFile,
    member: tarfile.TarInfo,
    root: Node,
    writer: ImageWriter,
    whiteouts: bool,
) -> None:
    path = os.fsencode(member.name)
    parts = parts_of(path)
    last = parts[-1] if parts else b""
    if whiteouts and last.startswith(WHITEOUT):
        _mark(root, parts, last)
        return
    if member.islnk():
        _link(root, path, member)
        return
    node = _node_of(member)
    if member.isreg():
        data = archive.extractfile(member)
        assert data is not None, "a regular file has data"
        writer.add(node, data.read, member.size)
    put(root, path, node)


def _mark(root: Node, parts: list[bytes], last: bytes) -> None:
    if last == OPAQUE_MARK:
        make_folders(root, parts[:-1]).xattrs[OPAQUE] = b"y"
    elif last.startswith(WHITEOUT + WHITEOUT):
        return  # aufs' own files (.wh..wh.plnk and the like) mean nothing here
    elif len(last) > len(WHITEOUT):
        hide(root, b"/".join([*parts[:-1], last.removeprefix(WHITEOUT)]))


def _link(root: Node, path: bytes, member: tarfile.TarInfo) -> None:
    target = os.fsencode(member.linkname)
    parts_of(target)
    node = find(root, target, follow_last=False)
    if node is None:
        raise ImageError(f"hard link {member.name!r} leads to {member.linkname!r}, which is absent")
    if node.is_folder:
        raise UnsafeImageError(f"hard link {member.name!r} leads to a folder")
    put(root, path, node)


def _node_of(member: tarfile.TarInfo) -> Node:
    node = Node(
        member.mode & 0o7777,
        member.uid,
        member.gid,
        max(0, int(member.mtime * 10**9)),
        _xattrs(member),
    )
    if member.isdir():
        node.mode |= stat.S_IFDIR
    elif member.issym():
        node.mode = stat.S_IFLNK | 0o777
        node.target = os.fsencode(member.linkname)
        if not 0 < len(node.target) <= MAX_LINK_BYTES or b"\0" in node.target:
            raise ImageError(f"symbolic link {member.name!r} leads nowhere or too far")
    elif member.isreg():
        node.mode |= stat.S_IFREG
    elif member.type in _KINDS:
        node.mode |= _KINDS[member.type]
        if not member.isfifo():
            node.rdev = device_number(member.devmajor, member.devminor)
    else:
        raise ImageError(f"entry {member.name!r} is of unknown kind {member.type!r}")
    if not (0 <= node.uid < 1 << 32 and 0 <= node.gid < 1 << 32):
        raise ImageError(f"entry {member.name!r} belongs to {node.uid}:{node.gid}")
    return node


def _xattrs(member: tarfile.TarInfo) -> dict[str, bytes]:
    found = {}
    for key, value in member.pax_headers.items():
        name = key.removeprefix(_XATTR)
        if name != key and name.startswith(_KEPT_XATTRS):
            found[name] = value.encode("utf-8", "surrogateescape")
    return found


def device_number(major: int, minor: int) -> int:
    """A device's number as the kernel keeps it in images."""
    if not (0 <= major < 1 << 12 and 0 <= minor < 1 << 20):
        raise ImageError(f"device {major}:{minor} does not exist")
    return (minor & 0xFF) | major << 8 | (minor & ~0xFF) << 12


def is_tar(path: Path) -> bool:
    """Whether a file looks like a tar archive, packed or not."""
    from .compression import opened

    try:
        with path.open("rb") as file, opened(file) as stream:
            head = stream.read(512)
    except (ImageError, *DAMAGES):
        return False
    return head[257:262] == b"ustar" or head == bytes(512)
