"""Opens plain, gzip, zstd, bzip2 and xz streams by their first bytes."""

from __future__ import annotations

import bz2
import gzip
import io
import lzma
import zlib
from typing import IO, BinaryIO, cast

from baleen.errors import MissingExtraError

from .errors import ImageError

_MAGIC_BYTES = 6
DAMAGES = (EOFError, zlib.error, lzma.LZMAError, gzip.BadGzipFile, OSError)
"""What a damaged stream makes the readers raise."""


def opened(file: BinaryIO) -> IO[bytes]:
    """A reader of what the file holds, unpacked; the file must be at its beginning.

    Raises:
        ImageError: zstd data that is damaged at once.
        MissingExtraError: zstd data, and no library for it.
    """
    buffered = file if isinstance(file, io.BufferedReader) else io.BufferedReader(_raw(file))
    magic = buffered.peek(_MAGIC_BYTES)[:_MAGIC_BYTES]
    if magic.startswith(b"\x1f\x8b"):
        return cast("IO[bytes]", gzip.GzipFile(fileobj=buffered))
    if magic.startswith(b"\x28\xb5\x2f\xfd"):
        return _zstd(buffered)
    if magic.startswith(b"BZh"):
        return bz2.BZ2File(buffered)
    if magic.startswith(b"\xfd7zXZ\x00"):
        return lzma.LZMAFile(buffered)
    return buffered


def _raw(file: BinaryIO) -> io.RawIOBase:
    raw = getattr(file, "raw", file)
    return cast("io.RawIOBase", raw)


def _zstd(file: BinaryIO) -> IO[bytes]:
    try:
        import zstandard
    except ImportError:
        raise MissingExtraError(
            "this layer is packed with zstd", remedy="pip install zstandard"
        ) from None
    reader = zstandard.ZstdDecompressor(max_window_size=1 << 27).stream_reader(
        file, read_across_frames=True
    )
    return io.BufferedReader(cast("io.RawIOBase", _Guarded(reader)))


class _Guarded(io.RawIOBase):
    """A zstd reader whose failures are those of other readers."""

    def __init__(self, reader: IO[bytes]) -> None:
        self._reader = reader

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: object) -> int:
        import zstandard

        view = memoryview(buffer)  # type: ignore[arg-type]
        try:
            data = self._reader.read(len(view))
        except zstandard.ZstdError as error:
            raise ImageError(f"damaged zstd data: {error}") from None
        view[: len(data)] = data
        return len(data)
