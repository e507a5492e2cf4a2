"""What an archive may unpack to, so that a small file cannot fill the disk."""

from __future__ import annotations

from dataclasses import dataclass

from .errors import UnsafeImageError


@dataclass(frozen=True)
class Limits:
    """Caps on one archive."""

    max_bytes: int = 64 << 30
    max_entries: int = 4_000_000
    max_ratio: int = 200
    """Unpacked to packed bytes; real layers stay far below, bombs are beyond a thousand."""
    free_bytes: int = 1 << 30
    """So much may come of any archive before the ratio counts."""


class Meter:
    """Counts what comes out of an archive against its limits."""

    def __init__(self, limits: Limits, packed_bytes: int | None = None) -> None:
        self._limits = limits
        self._packed = packed_bytes
        self._bytes = 0
        self._entries = 0

    def entry(self, size: int, real_bytes: int | None = None) -> None:
        """Called before an entry's data is read; of a sparse file, ``real_bytes`` is not holes.

        Raises:
            UnsafeImageError: names the cap.
        """
        self._entries += 1
        self._bytes += size if real_bytes is None else real_bytes
        limits = self._limits
        if size > limits.max_bytes:
            raise UnsafeImageError(f"a file of {size} bytes, {limits.max_bytes} are allowed")
        if self._entries > limits.max_entries:
            raise UnsafeImageError(f"the archive has more than {limits.max_entries} entries")
        if self._bytes > limits.max_bytes:
            raise UnsafeImageError(f"the archive unpacks to more than {limits.max_bytes} bytes")
        if self._packed is not None and self._bytes > limits.free_bytes:
            ratio = self._bytes // max(1, self._packed)
            if ratio > limits.max_ratio:
                raise UnsafeImageError(
                    f"the archive unpacks to {ratio} times its size, {limits.max_ratio} are allowed"
                )
