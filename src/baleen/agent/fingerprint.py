"""A short name for exactly these weights, so that a run is never continued by other ones."""

from __future__ import annotations

import hashlib
from pathlib import Path

_WHOLE_BYTES = 64 << 20
_SAMPLE_BYTES = 1 << 20
_PATTERNS = ("config.json", "tokenizer.json", "*.safetensors")


def fingerprint(folder: Path) -> str:
    """Digest of a model folder.

    Small files are read whole. Of a larger one only its size, beginning and end are: reading
    hundreds of gigabytes to name them would take longer than most runs.
    """
    digest = hashlib.sha256()
    for file in sorted({file for pattern in _PATTERNS for file in folder.glob(pattern)}):
        size = file.stat().st_size
        digest.update(f"{file.name}\n{size}\n".encode())
        with file.open("rb") as opened:
            if size <= _WHOLE_BYTES:
                digest.update(opened.read())
            else:
                digest.update(opened.read(_SAMPLE_BYTES))
                opened.seek(-_SAMPLE_BYTES, 2)
                digest.update(opened.read())
    return digest.hexdigest()[:16]
