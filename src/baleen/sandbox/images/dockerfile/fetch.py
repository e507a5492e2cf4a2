"""ADD of a URL: fetched by the builder, checked where a digest is given."""

from __future__ import annotations

import hashlib
import io
import posixpath
import stat
from urllib.parse import urlsplit

from ..erofs import ImageWriter
from ..limits import Limits
from ..oci import plain_digest
from ..tree import Node
from .copying import Piece
from .parser import Instruction

TIMEOUT_S = 60.0
MAX_BYTES = 4 << 30


def fetched(step: Instruction, url: str, checksum: str | None, limits: Limits) -> Piece:
    """Fetches a file.

    Raises:
        BuildError: it cannot be had, is too long, or has another digest.
    """
    import httpx

    name = posixpath.basename(urlsplit(url).path)
    if not name:
        raise step.fail(f"{url} names no file")
    parts = []
    size = 0
    try:
        with httpx.stream("GET", url, follow_redirects=True, timeout=TIMEOUT_S) as answer:
            if answer.status_code != 200:
                raise step.fail(f"{url}: {answer.status_code} {answer.reason_phrase}")
            for part in answer.iter_bytes():
                size += len(part)
                if size > min(MAX_BYTES, limits.max_bytes):
                    raise step.fail(f"{url} is longer than allowed")
                parts.append(part)
    except httpx.HTTPError as error:
        raise step.fail(f"{url}: {error}") from None
    data = b"".join(parts)
    digest = hashlib.sha256(data).hexdigest()
    if checksum is not None and plain_digest(checksum) != digest:
        raise step.fail(f"{url} has digest sha256:{digest}, not {checksum}")

    def take(writer: ImageWriter) -> Node:
        node = Node(stat.S_IFREG | 0o600)
        writer.add(node, io.BytesIO(data).read, len(data))
        return node

    return Piece(take, name, False, digest)
