"""Virtual environments with the real packages that the adapters are for, one each.

``python tests/sandbox/adapters/peers.py`` builds those that are missing under
``~/.cache/baleen/peers`` (some minutes, needs a package index). Tests whose environment is not
there are skipped and say so.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

FOLDER = Path(os.environ.get("BALEEN_PEERS", Path.home() / ".cache/baleen/peers"))
OURS = ("click", "httpx", "msgpack", "platformdirs", "rich", "zstandard")
TOOLS = ("pytest", "pytest-asyncio", "pytest-timeout")


class Peer(NamedTuple):
    """A package, the version that the adapter was written for, and its Python."""

    package: str
    module: str
    python: str = sys.executable


def _newer_python() -> str:
    """Python 3.12 or newer, also where it is installed aside."""
    aside = sorted(Path.home().glob(".pyenv/versions/3.1[23].*/bin/python"))
    return str(aside[0]) if aside else shutil.which("python3.12") or sys.executable


PEERS = {
    "mcp": Peer("mcp==2.3.0", "mcp"),
    "mini": Peer("mini-swe-agent==2.4.6", "minisweagent"),
    "inspect": Peer("inspect-ai==0.3.285", "inspect_ai"),
    "harbor": Peer("harbor==0.25.0", "harbor", _newer_python()),
    "swerex": Peer("swe-rex==1.4.0", "swerex"),
}


def python_of(name: str) -> Path | None:
    """The interpreter of a peer's environment, None where it has not been built."""
    python = FOLDER / name / "bin/python"
    if not python.exists():
        return None
    probe = f"import {PEERS[name].module}, pytest"
    quiet = {**os.environ, "MSWEA_SILENT_STARTUP": "1"}
    done = subprocess.run([python, "-c", probe], capture_output=True, env=quiet, check=False)
    return python if done.returncode == 0 else None


def build(name: str) -> None:
    peer = PEERS[name]
    folder = FOLDER / name
    subprocess.run([peer.python, "-m", "venv", folder], check=True)
    packages = [peer.package, *OURS, *TOOLS]
    subprocess.run([folder / "bin/python", "-m", "pip", "install", "-q", *packages], check=True)


if __name__ == "__main__":
    for wanted in sys.argv[1:] or PEERS:
        if python_of(wanted) is None:
            print(f"building {wanted}", file=sys.stderr)
            build(wanted)
