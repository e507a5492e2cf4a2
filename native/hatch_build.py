"""Builds the Rust binaries for the wheel; an editable install builds them in place."""

from __future__ import annotations

import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path
from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface

ROOT = Path(__file__).resolve().parent.parent
NATIVE = ROOT / "native"
BIN = ROOT / "src" / "baleen" / "sandbox" / "bin"


class NativeBuildHook(BuildHookInterface):  # type: ignore[type-arg]
    """Runs cargo, copies the binaries beside the package, tags the wheel for this platform."""

    PLUGIN_NAME = "custom"

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        build_native()
        platform = sysconfig.get_platform().replace("-", "_").replace(".", "_")
        build_data["pure_python"] = False
        build_data["tag"] = f"py3-none-{platform}"
        for binary in sorted(BIN.iterdir()):
            build_data["force_include"][str(binary)] = f"baleen/sandbox/bin/{binary.name}"


def build_native() -> None:
    """Builds every binary of the workspace ``native/`` into ``src/baleen/sandbox/bin``.

    Offline and with the standard library only; a second call is a no-op of cargo's.
    """
    cargo = shutil.which("cargo")
    if cargo is None:
        sys.exit(
            "baleen: cargo not found. It builds the sandbox launcher and agent (native/). "
            "Install Rust 1.75 or newer (Debian: apt-get install cargo), then run this again."
        )
    subprocess.run(
        [cargo, "build", "--release", "--offline", "--quiet", "--manifest-path", "Cargo.toml"],
        cwd=NATIVE,
        check=True,
    )
    BIN.mkdir(parents=True, exist_ok=True)
    for binary in (NATIVE / "target" / "release").iterdir():
        if binary.is_file() and binary.suffix == "" and binary.name.startswith("baleen-"):
            target = BIN / binary.name
            if not target.exists() or target.read_bytes() != binary.read_bytes():
                partial = target.with_suffix(".partial")  # a running edge keeps its own inode
                shutil.copy2(binary, partial)
                partial.replace(target)


if __name__ == "__main__":
    build_native()
