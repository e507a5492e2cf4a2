"""Builds the Rust binaries for the wheel; an editable install builds them in place."""

from __future__ import annotations

import os
import platform
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
KERNELS = ROOT / "src" / "baleen" / "kernels" / "lib"
KERNELS_FLAGS = {
    "plain": [],
    "avx2": ["-C", "target-cpu=x86-64-v3"],
    "avx512": ["-C", "target-cpu=x86-64-v4", "-C", "target-feature=+avx512bf16"],
}
"""Forms of the kernels, each a library of its own; x86-64 has all, other machines the plain one.
The loader takes the best that the processor has."""
AVX512_RUST = (1, 89)
"""The first compiler whose standard library has AVX-512."""


class NativeBuildHook(BuildHookInterface):  # type: ignore[type-arg]
    """Runs cargo, copies the binaries beside the package, tags the wheel for this platform."""

    PLUGIN_NAME = "custom"

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        build_native()
        tag = sysconfig.get_platform().replace("-", "_").replace(".", "_")
        build_data["pure_python"] = False
        build_data["tag"] = f"py3-none-{tag}"
        for binary in sorted(BIN.iterdir()):
            build_data["force_include"][str(binary)] = f"baleen/sandbox/bin/{binary.name}"
        for library in sorted(KERNELS.glob("*.so")):
            build_data["force_include"][str(library)] = f"baleen/kernels/lib/{library.name}"


def build_native() -> None:
    """Builds the binaries of the workspace ``native/`` into ``src/baleen/sandbox/bin``, and the
    kernels' library into ``src/baleen/kernels/lib``.

    Offline and with the standard library only; a second call is a no-op of cargo's.
    """
    cargo = shutil.which("cargo")
    if cargo is None:
        sys.exit(
            "baleen: cargo not found. It builds the sandbox launcher and agent and the model's "
            "kernels (native/). "
            "Install Rust 1.75 or newer (Debian: apt-get install cargo), then run this again."
        )
    _cargo(cargo, "--workspace", "--exclude", "baleen-kernels")
    BIN.mkdir(parents=True, exist_ok=True)
    for binary in (NATIVE / "target" / "release").iterdir():
        if binary.is_file() and binary.suffix == "" and binary.name.startswith("baleen-"):
            _install(binary, BIN / binary.name)
    _build_kernels(cargo)


def _build_kernels(cargo: str) -> None:
    """Builds the kernels in every form that machine and compiler have, and removes others."""
    forms = list(KERNELS_FLAGS) if platform.machine() == "x86_64" else ["plain"]
    if "avx512" in forms and (found := _rust_version()) < AVX512_RUST:
        have, need = (".".join(map(str, version)) for version in (found, AVX512_RUST))
        print(f"baleen: no AVX-512 kernels: rustc is {have}, they need {need}", file=sys.stderr)
        forms.remove("avx512")
    KERNELS.mkdir(parents=True, exist_ok=True)
    names = {form: f"libbaleen_kernels_{form}.so" for form in forms}
    for form, name in names.items():
        flags = [*os.environ.get("RUSTFLAGS", "").split(), *KERNELS_FLAGS[form]]
        # a folder of its own: other flags would build everything anew each time
        folder = NATIVE / "target" / f"kernels-{form}"
        arguments = ("-p", "baleen-kernels", "--target-dir", str(folder))
        _cargo(cargo, *arguments, RUSTFLAGS=" ".join(flags))
        _install(folder / "release" / "libbaleen_kernels.so", KERNELS / name)
    for library in KERNELS.glob("*.so"):
        if library.name not in names.values():
            library.unlink()


def _rust_version() -> tuple[int, ...]:
    rustc = os.environ.get("RUSTC", "rustc")
    told = subprocess.run([rustc, "--version"], check=True, capture_output=True, text=True).stdout
    return tuple(int(part) for part in told.split()[1].split(".")[:2])


def _cargo(cargo: str, *arguments: str, **environment: str) -> None:
    command = [cargo, "build", "--release", "--offline", "--quiet", *arguments]
    subprocess.run(command, cwd=NATIVE, check=True, env={**os.environ, **environment})


def _install(built: Path, target: Path) -> None:
    """Replaces a file whose content changed; whoever has it open keeps the old one."""
    if not target.exists() or target.read_bytes() != built.read_bytes():
        partial = target.with_suffix(".partial")
        shutil.copy2(built, partial)
        partial.replace(target)


if __name__ == "__main__":
    build_native()
