"""Finds ``baleen-box``, the static binary that launches boxes and runs inside them."""

from __future__ import annotations

import os
import sys
from pathlib import Path

from .errors import HostError

NAME = "baleen-box"


def box_binary() -> Path:
    """Returns the binary's path.

    Raises:
        HostError: not Linux, or the package was installed without its binary.
    """
    if sys.platform != "linux":
        raise HostError(
            f"boxes need Linux, this is {sys.platform}",
            remedy="run the edge on a Linux host or in a Linux virtual machine",
        )
    path = Path(os.environ.get("BALEEN_SANDBOX_BINARY", Path(__file__).parent / "bin" / NAME))
    if not os.access(path, os.X_OK):
        raise HostError(
            f"the sandbox binary {path} is missing",
            remedy="build it with `python native/hatch_build.py` (needs cargo), or install a wheel",
        )
    return path
