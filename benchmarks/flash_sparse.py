"""A full-size V4-Flash folder of sparse files loads and decodes within 16 GB.

    python benchmarks/flash_sparse.py [--folder DIR] [--preset v4-flash] [--tokens 1]

Makes a folder with the released names, shapes, types and shards of the preset, whose files are
holes: all weights are zero and take no disk. Then a fresh process maps it, decodes, and reports its
peak resident memory, page cache of the mapped files included. Zero weights make zero logits; what
is measured is that names, shapes and sizes are right and what of them a token touches.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import torch
from results import write_results

from baleen.model import ModelConfig, Transformer
from baleen.model.checkpoint import file_skeleton
from baleen.model.formats.config_text import config_text
from baleen.model.formats.stored import Format
from baleen.model.formats.writer import Planned, write_folder

SHARD_BYTES = 3_500_000_000


def make_folder(folder: Path, preset: str) -> None:
    """The folder, in seconds: headers are written, bodies are holes."""
    config = ModelConfig.preset(preset)
    folder.mkdir(parents=True, exist_ok=True)
    layout = Format(config.expert_dtype or "bf16")
    (folder / "config.json").write_text(config_text(config, None, layout), "utf-8")
    planned = [
        Planned(name, dtype, shape, lambda: torch.empty(0))  # never asked for
        for name, dtype, shape in file_skeleton(config, layout)
    ]
    write_folder(folder, planned, SHARD_BYTES, hollow=True)


def decode(folder: Path, tokens: int) -> dict[str, object]:
    """In this process: load, decode, and say what it took."""
    torch.set_grad_enabled(False)
    started = time.monotonic()
    model = Transformer.from_pretrained(str(folder), dtype=torch.bfloat16, weights="mapped")
    loaded = time.monotonic()
    state, times = model.new_state(kv_dtype="bf16"), []
    ids = torch.tensor([[0]])
    for _ in range(tokens):
        begun = time.monotonic()
        logits = model(ids, state=state)
        times.append(time.monotonic() - begun)
        ids = logits[:, -1:].argmax(-1)
    assert logits.shape == (1, 1, model.config.vocab_size)
    assert torch.isfinite(logits).all()
    return {
        "load_s": round(loaded - started, 2),
        "first_token_s": round(times[0], 2),
        "last_token_s": round(times[-1], 2),
        "peak_rss_gb": round(_status("VmHWM") / 1e9, 2),
    }


def _status(key: str) -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) << 10 for line in lines if line.startswith(key))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--folder", type=Path, help="keep the folder here")
    parser.add_argument("--preset", default="v4-flash")
    parser.add_argument("--tokens", type=int, default=1)
    parser.add_argument("--limit-gb", type=float, default=16.0)
    parser.add_argument("--child", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.child:
        print(json.dumps(decode(options.folder, options.tokens)))
        return
    with tempfile.TemporaryDirectory() as scratch:
        folder = options.folder or Path(scratch) / options.preset
        started = time.monotonic()
        if not (folder / "config.json").exists():
            make_folder(folder, options.preset)
        made = time.monotonic() - started
        files = list(folder.glob("*.safetensors"))
        command = [sys.executable, __file__, "--child", "--folder", str(folder)]
        done = subprocess.run(
            [*command, "--tokens", str(options.tokens)], stdout=subprocess.PIPE, check=True
        )
        row = {
            "preset": options.preset,
            "files": len(files),
            "file_gb": round(sum(file.stat().st_size for file in files) / 1e9, 2),
            "disk_gb": round(sum(file.stat().st_blocks * 512 for file in files) / 1e9, 3),
            "make_s": round(made, 2),
            "threads": os.environ.get("OMP_NUM_THREADS", "default"),
            "tokens": options.tokens,
            **json.loads(done.stdout),
        }
    print("  ".join(f"{key} {value}" for key, value in row.items()))
    write_results("flash_sparse", [row])
    if float(str(row["peak_rss_gb"])) > options.limit_gb:
        sys.exit(f"peak of {row['peak_rss_gb']} GB is above {options.limit_gb} GB")


if __name__ == "__main__":
    main()
