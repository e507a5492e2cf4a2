"""With what a run was made: package versions, interpreter, machine."""

from __future__ import annotations

import platform
import sys
from importlib import metadata
from typing import Any

import baleen
from baleen.agent import atif, wal

_PACKAGES = ("torch", "tokenizers", "safetensors", "numpy", "httpx", "msgpack", "click")
FORMATS = {"wal": wal.VERSION, "trajectory": atif.SCHEMA_VERSION}


def versions() -> dict[str, Any]:
    """What versions.json holds. Names of packages that are not installed are left out."""
    found = {}
    for name in _PACKAGES:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return {
        "baleen": baleen.__version__,
        "python": platform.python_version(),
        "packages": found,
        "system": platform.platform(),
        "machine": platform.machine(),
        "formats": FORMATS,
        "command": sys.argv,
    }
