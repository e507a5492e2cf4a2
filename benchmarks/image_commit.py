"""How long committing a box takes: 58 MB in 2,003 files, and almost nothing.

    python benchmarks/image_commit.py [--rounds 10]

From the SDK call to the digest in the caller: the box stands still, its upper layers are read from
outside, written as EROFS layers, hashed and synced. mkfs.erofs writes the same files beside it
where it is installed (uncompressed, no digest, no sync). Prints and writes
``benchmarks/results/image_commit.csv``.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import shutil
import statistics
import subprocess
import tempfile
import time
from pathlib import Path

from results import write_results

from baleen.sandbox import Sandbox
from baleen.sandbox.home import Home
from baleen.sandbox.images.gc import collect

FILES, TOTAL_BYTES = 2_003, 58_000_000
Row = dict[str, str | int | float]

WRITE = (
    "import os\n"
    f"for n in range({FILES}):\n"
    "    os.makedirs(f'/srv/d{n % 50}', exist_ok=True)\n"
    f"    open(f'/srv/d{{n % 50}}/f{{n}}', 'wb').write(os.urandom({TOTAL_BYTES // FILES}))\n"
)


def row(what: str, who: str, times_s: list[float]) -> Row:
    times_ms = sorted(t * 1000 for t in times_s)
    found: Row = {"what": what, "who": who, "count": len(times_ms)}
    found |= {"min_ms": round(times_ms[0], 1), "p50_ms": round(statistics.median(times_ms), 1)}
    found |= {"max_ms": round(times_ms[-1], 1), "load": round(os.getloadavg()[0], 2)}
    print("  ".join(f"{key} {value}" for key, value in found.items()))
    return found


async def commits(line: list[str], rounds: int) -> list[float]:
    """Times of committing a box after a command, nothing of the layer being in the store."""
    home = Home.default()
    times = []
    async with await Sandbox.create(memory_mb=1024) as box:
        made = await box.run(line, timeout_s=60)
        assert made.exit_code == 0, made
        for _ in range(rounds):
            start = time.perf_counter()
            await box.snapshot()
            times.append(time.perf_counter() - start)
            await asyncio.to_thread(collect, home)
    return times


def by_mkfs(rounds: int) -> list[float]:
    """mkfs.erofs on files of the same number and size in memory."""
    times = []
    with tempfile.TemporaryDirectory(dir="/dev/shm") as folder:
        for n in range(FILES):
            place = Path(folder, f"d{n % 50}")
            place.mkdir(exist_ok=True)
            (place / f"f{n}").write_bytes(os.urandom(TOTAL_BYTES // FILES))
        with tempfile.TemporaryDirectory() as target:
            for _ in range(rounds):
                image = Path(target, "image")
                start = time.perf_counter()
                subprocess.run(["mkfs.erofs", image, folder], check=True, capture_output=True)
                times.append(time.perf_counter() - start)
                image.unlink()
    return times


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=10)
    rounds = parser.parse_args().rounds
    big = f"{TOTAL_BYTES // 1_000_000} MB in {FILES} files"
    rows = [row(big, "baleen", asyncio.run(commits(["python3", "-c", WRITE], rounds)))]
    if shutil.which("mkfs.erofs"):
        rows.append(row(big, "mkfs.erofs", by_mkfs(rounds)))
    tiny = asyncio.run(commits(["touch", "/root/x"], rounds))
    rows.append(row("one empty file", "baleen", tiny))
    write_results("image_commit", rows)


if __name__ == "__main__":
    main()
