"""llama.cpp as a peer: fetched, built once, and asked for logits, speed and answers.

The source is the sdist of llama-cpp-python, which carries a llama.cpp that knows V4 (`deepseek4`).
Everything lands under `~/.cache/baleen/peers/llama.cpp`; a second call finds it there, and calls at
the same time wait for the first. About ten minutes on two cores, and five for the server alone::

    python benchmarks/peers/llama_cpp.py            # llama-bench and a program for logits
    python benchmarks/peers/llama_cpp.py server     # llama-server, which tests drive
"""

from __future__ import annotations

import fcntl
import os
import shutil
import subprocess
import sys
import tarfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import platformdirs

VERSION = "0.3.36"
LOGITS_SOURCE = Path(__file__).parent / "llama_logits.cpp"
FLAGS = [
    "-DCMAKE_BUILD_TYPE=Release",
    "-DGGML_NATIVE=ON",
    "-DLLAMA_OPENSSL=OFF",
    "-DLLAMA_BUILD_TESTS=OFF",
    "-DLLAMA_BUILD_EXAMPLES=OFF",
    "-DLLAMA_BUILD_SERVER=ON",
    "-DBUILD_SHARED_LIBS=ON",
]


class LlamaCpp(NamedTuple):
    """What was built."""

    source: Path
    """llama.cpp's own tree, with `convert_hf_to_gguf.py` and `gguf-py`."""
    bench: Path
    """`llama-bench`."""
    logits: Path
    """Our small program over its library: model, ids and threads in, logits out."""


def folder() -> Path:
    peers = os.environ.get("BALEEN_PEERS") or Path(platformdirs.user_cache_dir("baleen")) / "peers"
    return Path(peers) / "llama.cpp"


def source() -> Path:
    """Where llama.cpp's own tree is, or would be."""
    return folder() / f"llama_cpp_python-{VERSION}" / "vendor" / "llama.cpp"


def find() -> LlamaCpp | None:
    """The finished build, if there is one."""
    found = LlamaCpp(
        source(), folder() / "build" / "bin" / "llama-bench", folder() / "llama-logits"
    )
    return found if found.bench.exists() and found.logits.exists() else None


def build() -> LlamaCpp:
    """Fetches and builds what is not there yet."""
    with _alone():
        if not (folder() / "build" / "bin" / "llama-bench").exists():
            _compile(source(), "llama", "llama-bench")
        _link_logits(source())
    found = find()
    assert found is not None, "the build ended well and left no programs"
    return found


def server() -> Path:
    """Where `llama-server` is, or would be."""
    return folder() / "build" / "bin" / "llama-server"


def build_server() -> Path:
    """Fetches and builds `llama-server`, if it is not there yet."""
    with _alone():
        if not server().exists():
            _compile(source(), "llama-server")
    return server()


@contextmanager
def _alone() -> Iterator[None]:
    """No other process builds; the source is there."""
    folder().mkdir(parents=True, exist_ok=True)
    with (folder() / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not source().exists():
            _fetch()
        yield


def _fetch() -> None:
    pip = [sys.executable, "-m", "pip", "download", "-q", "--no-deps"]
    only = ["--no-binary", "llama-cpp-python", f"llama-cpp-python=={VERSION}"]
    subprocess.run([*pip, *only, "--dest", str(folder())], check=True)
    archive = folder() / f"llama_cpp_python-{VERSION}.tar.gz"
    partial = folder() / "partial"
    shutil.rmtree(partial, ignore_errors=True)
    with tarfile.open(archive) as tar:
        tar.extractall(partial, filter="data")
    name = f"llama_cpp_python-{VERSION}"
    (partial / name).rename(folder() / name)
    partial.rmdir()
    archive.unlink()


def _compile(tree: Path, *targets: str) -> None:
    build_dir = folder() / "build"
    generator = ["-G", "Ninja"] if shutil.which("ninja") else []
    nice = ["nice", "-n", "15"]
    configure = ["cmake", *generator, *FLAGS, "-S", str(tree), "-B", str(build_dir)]
    subprocess.run([*nice, *configure], check=True, stdout=sys.stderr)
    cores = str(os.cpu_count() or 1)
    command = [*nice, "cmake", "--build", str(build_dir), "--parallel", cores]
    subprocess.run([*command, "--target", *targets], check=True, stdout=sys.stderr)


def _link_logits(tree: Path) -> None:
    program = folder() / "llama-logits"
    if program.exists() and program.stat().st_mtime > LOGITS_SOURCE.stat().st_mtime:
        return
    libraries = folder() / "build" / "bin"
    includes = [f"-I{tree / 'include'}", f"-I{tree / 'ggml' / 'include'}"]
    links = [f"-L{libraries}", f"-Wl,-rpath,{libraries}", "-lllama", "-lggml", "-lggml-base"]
    command = ["g++", "-std=c++17", "-O2", str(LOGITS_SOURCE), *includes, *links]
    subprocess.run([*command, "-o", str(program)], check=True)


if __name__ == "__main__":
    if sys.argv[1:] == ["server"]:
        print(build_server())
        sys.exit()
    for name, path in build()._asdict().items():
        print(f"{name:8} {path}")
