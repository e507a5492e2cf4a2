"""The body of an HTTP/1.1 response, taken out of what arrives: chunks, a length, or all."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

_MAX_LINE_BYTES: Final = 1 << 12


class BodyReader:
    """Reads one body; feed it what comes behind the headers."""

    __slots__ = (
        "_held",
        "_is_chunked",
        "_left",
        "ends_with_connection",
        "has_surplus",
        "is_over",
    )

    def __init__(self, status: int, headers: Mapping[str, str]) -> None:
        self._is_chunked = "chunked" in headers.get("transfer-encoding", "").lower()
        length = headers.get("content-length")
        self._left = 0
        self.ends_with_connection = False
        """Nothing but the end of the connection ends this body."""
        if status in (204, 304):
            self._is_chunked, length = False, "0"
        if not self._is_chunked:
            self.ends_with_connection = length is None
            self._left = int(length or 0)
        self._held = b""
        self.has_surplus = False
        """More came than the body."""
        self.is_over = not self._is_chunked and not self.ends_with_connection and not self._left

    def feed(self, data: bytes) -> bytes:
        """Some more bytes; returns what of them is body.

        Raises:
            ConnectionError: the chunks make no sense.
        """
        if self._is_chunked:
            # One whole chunk, and nothing else, is what a token comes in.
            if not self._held and not self._left:
                line_end = data.find(b"\r\n")
                size = _size(data[:line_end]) if line_end > 0 else 0
                if size and line_end + 4 + size == len(data):
                    return data[line_end + 2 : -2]
            return self._feed_chunks(data)
        if self.ends_with_connection:
            return data
        body = data[: self._left]
        self._left -= len(body)
        self.is_over = self._left == 0
        self.has_surplus = len(data) > len(body)
        return body

    def _feed_chunks(self, data: bytes) -> bytes:
        """`_left` counts what is missing of a chunk, the line end behind it included."""
        if self._held:
            data, self._held = self._held + data, b""
        parts: list[bytes] = []
        place, end = 0, len(data)
        if self._left:
            place = self._take_rest(data, parts)
        while place < end and not self.is_over:
            line_end = data.find(b"\r\n", place)
            if line_end < 0:
                self._held = data[place:]
                if len(self._held) > _MAX_LINE_BYTES:
                    raise ConnectionError("a chunk's length without end")
                break
            size = _size(data[place:line_end])
            start = line_end + 2
            if size == 0:
                self._end(data, place, start)
                break
            stop = start + size
            parts.append(data[start:stop])
            place = stop + 2
            if place > end:
                self._left = place - end
        return parts[0] if len(parts) == 1 else b"".join(parts)

    def _take_rest(self, data: bytes, parts: list[bytes]) -> int:
        """More of a chunk that has begun; returns where it ends."""
        place, payload = min(self._left, len(data)), max(0, self._left - 2)
        self._left -= place
        parts.append(data[: min(place, payload)])
        return place

    def _end(self, data: bytes, place: int, start: int) -> None:
        """The last chunk: over when its trailers are, of which there are none as a rule."""
        stop = start if data.startswith(b"\r\n", start) else data.find(b"\r\n\r\n", start - 2) + 2
        if stop < 2 or len(data) < stop + 2:
            self._held = data[place:]
            return
        self.is_over = True
        self.has_surplus = len(data) > stop + 2


def _size(line: bytes) -> int:
    try:
        return int(line.partition(b";")[0], 16)
    except ValueError:
        raise ConnectionError(f"no chunk's length: {line[:40]!r}") from None
