"""``box.files``: files of a box, read and written from inside it, so that links cannot lead out.

On the host's side a copy trusts no name twice: what was opened is what is checked and read, and
what is made hangs on descriptors of folders made before. So a box that shares a writable folder
with the host cannot turn a copy elsewhere by swapping links while it runs.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import os
import stat
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any, BinaryIO

from baleen.errors import UsageError

from .errors import BoxFileError

CHUNK_BYTES = 1 << 20
MAX_READ_BYTES = 100 << 20
MAX_COPY_BYTES = 8 << 30
"""What one download may take of the host's disk: a box can show sparse files of any size."""

MAX_DEPTH = 128
"""Folders within folders that a copy follows; each holds a descriptor meanwhile."""

Ask = Callable[..., Awaitable[Any]]
BoxPath = str | os.PathLike[str]


@dataclass(frozen=True)
class FileInfo:
    """One entry of a folder of the box."""

    name: str
    """Bytes that are no UTF-8 are surrogates, as in ``os.listdir``."""
    kind: str
    """"file", "directory", "link" or "other"."""
    size: int
    mode: int
    uid: int
    gid: int
    mtime: int


class Files:
    """File operations on one box; every path is the box's and absolute."""

    def __init__(self, ask: Ask) -> None:
        self._ask = ask

    async def read(self, path: BoxPath, *, max_bytes: int = MAX_READ_BYTES) -> bytes:
        """Returns a file's content.

        Raises:
            BoxFileError: it does not exist, is no regular file, or is longer than ``max_bytes``.
        """
        content = bytearray()
        async for part in _Reading(self._ask, _absolute(path), max_bytes):
            content += part
        return bytes(content)

    async def write(self, path: BoxPath, data: bytes | str, *, mode: int = 0o644) -> None:
        """Writes a file, parents included; readers see the old content or the new, never half."""
        if not isinstance(data, (bytes, bytearray, memoryview, str)):
            raise UsageError(f"data={data!r} is neither bytes nor str")
        content = memoryview(data.encode() if isinstance(data, str) else data).cast("B")
        pieces = (
            bytes(content[at : at + CHUNK_BYTES]) for at in range(0, len(content), CHUNK_BYTES)
        )
        await self._write(_absolute(path), pieces, mode)

    async def _write(self, target: str, pieces: Iterator[bytes], mode: int) -> None:
        partial = f"{target}.baleen-{os.urandom(6).hex()}"
        await self._ask("mkdir", _wire(str(PurePosixPath(target).parent)))
        try:
            offset, piece = 0, next(pieces, b"")
            while piece or not offset:
                await self._ask("write", _wire(partial), offset=offset, data=piece, mode=mode)
                offset += max(len(piece), 1)
                piece = next(pieces, b"")
            await self._ask("rename", _wire(partial), to=_wire(target))
        except BaseException:
            await asyncio.shield(self._discard(partial))
            raise

    async def _discard(self, path: str) -> None:
        with contextlib.suppress(BoxFileError):  # it is gone, or the disk's error is the one told
            await self._ask("remove", _wire(path))

    async def list(self, path: BoxPath = "/") -> list[FileInfo]:
        """Returns a folder's entries by name; links are not followed."""
        entries = await self._ask("list", _wire(_absolute(path)))
        found = (FileInfo(**{**entry, "name": _name(entry["name"])}) for entry in entries)
        return sorted(found, key=lambda entry: entry.name)

    async def remove(self, path: BoxPath) -> None:
        """Removes a file, or a folder with all that is in it."""
        await self._ask("remove", _wire(_absolute(path)))

    async def upload(self, source: str | os.PathLike[str], target: BoxPath) -> None:
        """Copies a host file or folder into the box; links that leave the folder are left out.

        Raises:
            FileNotFoundError: there is no ``source``.
            BoxFileError: the box cannot take it.
        """
        root = Path(source).resolve(strict=True)
        into = _absolute(target)
        if not root.is_dir():
            with root.open("rb") as file:
                await self._upload_file(file, into)
            return
        await self._ask("mkdir", _wire(into))
        for folder, _, names in os.walk(root):
            below = PurePosixPath(into, Path(folder).relative_to(root).as_posix())
            await self._ask("mkdir", _wire(str(below)))
            for name in sorted(names):
                file_within = _opened_within(root, Path(folder, name))
                if file_within is not None:
                    with file_within:
                        await self._upload_file(file_within, str(below / name))

    async def _upload_file(self, file: BinaryIO, target: str) -> None:
        mode = os.fstat(file.fileno()).st_mode & 0o777
        await self._write(target, iter(lambda: file.read(CHUNK_BYTES), b""), mode)

    async def download(
        self,
        source: BoxPath,
        target: str | os.PathLike[str],
        *,
        max_bytes: int = MAX_COPY_BYTES,
    ) -> None:
        """Copies a file or folder of the box to the host; links and devices are left out.

        Nothing that exists on the host is followed or replaced: ``target`` must be new.

        Raises:
            FileExistsError: ``target`` exists.
            BoxFileError: it cannot be read, is longer than ``max_bytes`` in all, or deeper than
                128 folders.
        """
        path, new = _absolute(source), Path(target)
        info = await self._ask("stat", _wire(path))
        copy = _Download(self, max_bytes)
        parent = os.open(new.parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            await copy.take(path, parent, new.name, info["kind"], info["mode"], 0)
        except FileExistsError as error:  # it knows only the name below the descriptor
            raise FileExistsError(error.errno, error.strerror, str(new)) from None
        finally:
            os.close(parent)


class _Reading:
    """A file of the box in pieces, never more than ``max_bytes`` of it."""

    def __init__(self, ask: Ask, path: str, max_bytes: int) -> None:
        self._ask, self._path, self._max_bytes = ask, path, max_bytes
        self.size = 0

    def __aiter__(self) -> _Reading:
        return self

    async def __anext__(self) -> bytes:
        where = _wire(self._path)
        part: bytes = await self._ask("read", where, offset=self.size, count=CHUNK_BYTES)
        self.size += len(part)
        if self.size > self._max_bytes:
            raise BoxFileError(
                f"{_shown(self._path)} is longer than {self._max_bytes} bytes",
                remedy="raise max_bytes, or copy it with download()",
                errno=errno.EFBIG,
            )
        if not part:
            raise StopAsyncIteration
        return part


class _Download:
    """One copy to the host, with what it may still take."""

    def __init__(self, files: Files, max_bytes: int) -> None:
        self._files = files
        self._left = max_bytes

    async def take(
        self, source: str, parent: int, name: str, kind: str, mode: int, depth: int
    ) -> None:
        """Makes ``name`` in the folder that the descriptor ``parent`` is."""
        if kind == "directory":
            await self._folder(source, parent, name, depth)
        else:
            await self._file(source, parent, name, mode)

    async def _folder(self, source: str, parent: int, name: str, depth: int) -> None:
        if depth == MAX_DEPTH:
            raise BoxFileError(
                f"{_shown(source)} lies deeper than {MAX_DEPTH} folders", errno=errno.ELOOP
            )
        os.mkdir(name, dir_fd=parent)
        flags = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
        folder = os.open(name, flags, dir_fd=parent)
        try:
            for entry in await self._files.list(source):
                if entry.kind in ("file", "directory"):
                    below = f"{source.rstrip('/')}/{entry.name}"
                    plain = _plain(entry.name)
                    await self.take(below, folder, plain, entry.kind, entry.mode, depth + 1)
        finally:
            os.close(folder)

    async def _file(self, source: str, parent: int, name: str, mode: int) -> None:
        reading = _Reading(self._files._ask, source, self._left)
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
        fd = os.open(name, flags, mode & 0o777, dir_fd=parent)
        try:
            with os.fdopen(fd, "wb") as file:
                async for part in reading:
                    file.write(part)  # one MiB into the page cache: shorter than a thread's turn
        except BaseException:
            os.unlink(name, dir_fd=parent)
            raise
        self._left -= reading.size


def _opened_within(root: Path, path: Path) -> BinaryIO | None:
    """A regular file of the folder ``root``, opened; None where it is none or lies elsewhere."""
    with contextlib.suppress(OSError):
        fd = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
        file = os.fdopen(fd, "rb")
        real = Path(f"/proc/self/fd/{fd}").readlink()
        if stat.S_ISREG(os.fstat(fd).st_mode) and real.is_relative_to(root):
            return file
        file.close()
    return None


def _absolute(path: BoxPath) -> str:
    text = os.fspath(path) if isinstance(path, (str, os.PathLike)) else None
    if not isinstance(text, str) or not text.startswith("/") or "\0" in text:
        raise UsageError(f"{path!r} is not an absolute path of the box")
    return text


def _wire(path: str) -> str | bytes:
    """A path as it travels: text where it is text, else the bytes that it stands for."""
    encoded = os.fsencode(path)
    try:
        return encoded.decode()
    except UnicodeDecodeError:
        return encoded


def _name(name: str | bytes) -> str:
    return name if isinstance(name, str) else os.fsdecode(name)


def _shown(path: str) -> str:
    return os.fsencode(path).decode("utf-8", "backslashreplace")


def _plain(name: str) -> str:
    """A name that stays in its folder; a box is not trusted to report only such names."""
    if name in ("", ".", "..") or "/" in name or "\0" in name:
        raise BoxFileError(f"the box reports a file named {name!r}")
    return name
