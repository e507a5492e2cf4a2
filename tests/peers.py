"""The real packages that adapters and doors are for: each in an environment of its own.

``python tests/peers.py [NAME...]`` builds those that are missing under ``~/.cache/baleen/peers``
(some minutes, needs package indexes; ``make test`` calls it once). Tests whose peer is missing are
skipped and say so. As root it also installs the Debian programs that tests drive.
"""

from __future__ import annotations

import importlib.metadata
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

FOLDER = Path(os.environ.get("BALEEN_PEERS", Path.home() / ".cache/baleen/peers"))
CLIENTS = FOLDER / "clients"
LLAMA_SERVER = FOLDER / "llama.cpp/build/bin/llama-server"
OURS = ("click", "httpx", "msgpack", "platformdirs", "rich", "zstandard")
TOOLS = ("pytest", "pytest-asyncio", "pytest-timeout")
NPM_CLIENTS = {
    "codex": "@openai/codex@0.169.0",
    "opencode": "opencode-ai@1.18.33",
    "claude": "@anthropic-ai/claude-code@2.1.197",
}
"""By the name of their command."""
PROGRAMS = {
    "fsck.erofs": "erofs-utils",
    "chromium": "chromium",
    "openssl": "openssl",
    "cmake": "cmake",
    "g++": "g++",
    "ninja": "ninja-build",
}
"""What tests call, and the Debian package that has it."""


class Peer(NamedTuple):
    """Packages, the module that shows they are there, their Python, and pins to be dropped."""

    packages: tuple[str, ...]
    module: str
    python: str = sys.executable
    loosened: tuple[str, ...] = ()
    """Requirements whose versions are not honoured: an index may lag behind them."""


def _newer_python() -> str:
    """Python 3.12 or newer, also where it is installed aside."""
    aside = sorted(Path.home().glob(".pyenv/versions/3.1[23].*/bin/python"))
    return str(aside[0]) if aside else shutil.which("python3.12") or sys.executable


PEERS = {
    "mcp": Peer(("mcp==2.3.0",), "mcp"),
    "mini": Peer(("mini-swe-agent==2.4.6",), "minisweagent"),
    "inspect": Peer(("inspect-ai==0.3.285",), "inspect_ai"),
    "harbor": Peer(("harbor==0.25.0",), "harbor", _newer_python(), ("certifi",)),
    "swerex": Peer(("swe-rex==1.4.0",), "swerex"),
    "litellm": Peer(("litellm", "mcp==2.3.0", "mini-swe-agent==2.4.6"), "litellm"),
}


def python_of(name: str) -> Path | None:
    """The interpreter of a peer's environment, None where it has not been built."""
    python = FOLDER / name / "bin/python"
    if not python.exists():
        return None
    probe = f"import {PEERS[name].module}, pytest"
    quiet = {**os.environ, "MSWEA_SILENT_STARTUP": "1", "LITELLM_LOCAL_MODEL_COST_MAP": "True"}
    done = subprocess.run([python, "-c", probe], capture_output=True, env=quiet, check=False)
    return python if done.returncode == 0 else None


def build(name: str) -> None:
    """Makes a peer's environment."""
    peer, folder = PEERS[name], FOLDER / name
    subprocess.run([peer.python, "-m", "venv", "--clear", folder], check=True)
    pip = [folder / "bin/python", "-m", "pip", "install", "-qq"]
    if peer.loosened:
        subprocess.run([*pip, "--no-deps", *peer.packages], check=True)
        needed = _requirements(folder, peer)
    else:
        needed = list(peer.packages)
    subprocess.run([*pip, *needed, *OURS, *TOOLS], check=True)


def _requirements(folder: Path, peer: Peer) -> list[str]:
    """What the installed packages ask for, without the versions that are not honoured."""
    site = [str(path) for path in folder.glob("lib/python*/site-packages")]
    needed = []
    for package in peer.packages:
        found = importlib.metadata.distributions(name=package.partition("==")[0], path=site)
        for line in next(iter(found)).requires or ():
            if "extra ==" not in line:
                bare = next((name for name in peer.loosened if line.startswith(name)), None)
                needed.append(bare or line)
    return needed


def build_npm_clients() -> None:
    """Installs the coding agents that come from npm."""
    CLIENTS.mkdir(parents=True, exist_ok=True)
    npm = ["npm", "install", "--silent", "--no-audit", "--no-fund", "--prefix", CLIENTS]
    subprocess.run([*npm, *NPM_CLIENTS.values()], check=True)


def build_llama_server() -> None:
    """Builds llama-server from its source; some five minutes on two cores."""
    script = Path(__file__).parents[1] / "benchmarks/peers/llama_cpp.py"
    env = {**os.environ, "BALEEN_PEERS": str(FOLDER)}
    subprocess.run([sys.executable, script, "server"], check=True, env=env, stdout=sys.stderr)


def install_programs() -> None:
    """Installs what is missing of the Debian programs."""
    missing = [package for program, package in PROGRAMS.items() if not shutil.which(program)]
    if missing:
        quiet = {**os.environ, "DEBIAN_FRONTEND": "noninteractive"}
        apt = ["apt-get", "install", "-qq", "-y", "--no-install-recommends"]
        subprocess.run(["apt-get", "update", "-qq"], check=True, env=quiet)
        subprocess.run([*apt, *missing], check=True, env=quiet, stdout=subprocess.DEVNULL)


def attempt(what: str, work: Callable[[], None]) -> None:
    """Does it or says that it failed: a peer that cannot be had only skips its tests."""
    print(f"peers: {what}", file=sys.stderr, flush=True)
    try:
        work()
    except (OSError, subprocess.CalledProcessError) as error:
        print(f"peers: {what} failed, its tests will skip: {error}", file=sys.stderr)


def main() -> None:
    for wanted in sys.argv[1:] or PEERS:
        if python_of(wanted) is None:
            attempt(wanted, lambda name=wanted: build(name))  # type: ignore[misc]
    if len(sys.argv) > 1:
        return
    commands = CLIENTS / "node_modules/.bin"
    if shutil.which("npm") and not all((commands / name).exists() for name in NPM_CLIENTS):
        attempt(", ".join(NPM_CLIENTS), build_npm_clients)
    if os.geteuid() == 0 and shutil.which("apt-get"):
        attempt(", ".join(PROGRAMS.values()), install_programs)
    if not LLAMA_SERVER.exists():
        attempt("llama-server, about five minutes", build_llama_server)


if __name__ == "__main__":
    main()
