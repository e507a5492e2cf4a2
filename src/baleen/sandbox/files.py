"""``box.files``: files of a box, read and written from inside it, so that links cannot lead out."""

from __future__ import annotations

import asyncio
import errno
import os
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from baleen.errors import UsageError

from .errors import BoxFileError

CHUNK_BYTES = 1 << 20
MAX_READ_BYTES = 100 << 20

Ask = Callable[..., Awaitable[Any]]


@dataclass(frozen=True)
class FileInfo:
    """One entry of a folder of the box."""

    name: str
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

    async def read(self, path: str, *, max_bytes: int = MAX_READ_BYTES) -> bytes:
        """Returns a file's content.

        Raises:
            BoxFileError: it does not exist, is no regular file, or is longer than ``max_bytes``.
        """
        parts: list[bytes] = []
        size = 0
        while True:
            part: bytes = await self._ask("read", _absolute(path), offset=size, count=CHUNK_BYTES)
            size += len(part)
            if size > max_bytes:
                raise BoxFileError(
                    f"{path} is longer than {max_bytes} bytes",
                    remedy="raise max_bytes",
                    errno=errno.EFBIG,
                )
            if not part:
                return b"".join(parts)
            parts.append(part)

    async def write(self, path: str, data: bytes | str, *, mode: int = 0o644) -> None:
        """Writes a file, parents included; readers see the old content or the new, never half."""
        content = data.encode() if isinstance(data, str) else data
        target = _absolute(path)
        partial = f"{target}.baleen-{os.urandom(6).hex()}"
        await self._ask("mkdir", str(PurePosixPath(target).parent))
        try:
            for offset in range(0, max(len(content), 1), CHUNK_BYTES):
                chunk = content[offset : offset + CHUNK_BYTES]
                await self._ask("write", partial, offset=offset, data=chunk, mode=mode)
            await self._ask("rename", partial, to=target)
        except BoxFileError:
            await self._discard(partial)
            raise

    async def _discard(self, path: str) -> None:
        try:
            await self._ask("remove", path)
        except BoxFileError as error:
            if error.errno != errno.ENOENT:
                raise

    async def list(self, path: str = "/") -> list[FileInfo]:
        """Returns a folder's entries by name; links are not followed."""
        entries = await self._ask("list", _absolute(path))
        return sorted((FileInfo(**entry) for entry in entries), key=lambda entry: entry.name)

    async def remove(self, path: str) -> None:
        """Removes a file, or a folder with all that is in it."""
        await self._ask("remove", _absolute(path))

    async def upload(self, source: str | Path, target: str) -> None:
        """Copies a host file or folder into the box; links that leave the folder are left out."""
        root = Path(source).resolve(strict=True)
        if root.is_file():
            await self._upload_file(root, target)
            return
        await self._ask("mkdir", _absolute(target))
        for folder, _, names in os.walk(root):
            below = PurePosixPath(target, Path(folder).relative_to(root).as_posix())
            await self._ask("mkdir", str(below))
            for name in sorted(names):
                path = Path(folder, name)
                if path.resolve().is_relative_to(root) and path.is_file():
                    await self._upload_file(path, str(below / name))

    async def _upload_file(self, source: Path, target: str) -> None:
        data = await asyncio.to_thread(source.read_bytes)
        await self.write(target, data, mode=source.stat().st_mode & 0o777)

    async def download(self, source: str, target: str | Path) -> None:
        """Copies a file or folder of the box to the host; links and devices are left out.

        Nothing that exists on the host is followed or replaced: ``target`` must be new.
        """
        info = await self._ask("stat", _absolute(source))
        await self._download(_absolute(source), Path(target), info["kind"], info["mode"])

    async def _download(self, source: str, target: Path, kind: str, mode: int) -> None:
        if kind == "directory":
            target.mkdir()
            for entry in await self.list(source):
                if entry.kind in ("file", "directory"):
                    below = f"{source.rstrip('/')}/{entry.name}"
                    await self._download(below, target / _plain(entry.name), entry.kind, entry.mode)
            return
        data = await self.read(source)
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
        fd = os.open(target, flags, mode & 0o777)
        with os.fdopen(fd, "wb") as file:
            await asyncio.to_thread(file.write, data)


def _absolute(path: str) -> str:
    if not path.startswith("/"):
        raise UsageError(f"{path!r} is not an absolute path of the box")
    return path


def _plain(name: str) -> str:
    """A name that stays in its folder; a box is not trusted to report only such names."""
    if name in ("", ".", "..") or "/" in name or "\0" in name:
        raise BoxFileError(f"the box reports a file named {name!r}")
    return name
