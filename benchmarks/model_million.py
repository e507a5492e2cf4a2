"""A million tokens through a small model, with time by part, bytes, and plots against context.

    python benchmarks/model_million.py [--tokens 1048576] [--threads 2] [--kv fp32] [--folder DIR]

Six layers (0, 0, 4, 128, 4, 128), index 4 x 32, top-k 64, random weights. Progress and the state
are kept in the folder every 64K tokens; a second call goes on where the first was stopped. Writes
`benchmarks/results/model_million.csv` and `million.png` into the folder.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import resource
import statistics
import time
from pathlib import Path

import torch
from model_speed import CONFIG
from parts import PartClock
from results import write_results

from baleen.cache import State
from baleen.model import Transformer, initialize

SMALL = dataclasses.replace(CONFIG, index_n_heads=4, index_head_dim=32, qk_rope_head_dim=32)
STEP = 4096
SAVE_EVERY = 1 << 16
DECODE_STEPS = 32


def tokens_of(step: int) -> torch.Tensor:
    """The input at one step; the same in every run, whatever was resumed."""
    generator = torch.Generator().manual_seed(step)
    return torch.randint(0, SMALL.vocab_size, (1, STEP), generator=generator)


def resident_bytes() -> int:
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * resource.getpagesize()


@torch.no_grad()
def decode_ms(model: Transformer, state: State) -> float:
    """Median time of one more token; the state is left as it was."""
    mark, steps = state.mark(), []
    for token in range(DECODE_STEPS):
        started = time.perf_counter()
        model(torch.tensor([[token]]), state, logits_to_keep=1)
        steps.append(time.perf_counter() - started)
    state.rollback(mark)
    return statistics.median(steps) * 1e3


class Run:
    """Rows of figures and the state they belong to, kept in a folder."""

    def __init__(self, folder: Path, kv: str) -> None:
        self.folder, self.kv = folder, kv
        self.rows: list[dict[str, float]] = []
        self.model = initialize(Transformer(SMALL), 0).eval()
        self.state = self.model.new_state(kv_dtype=kv)
        folder.mkdir(parents=True, exist_ok=True)
        if (folder / "progress.json").exists():
            progress = json.loads((folder / "progress.json").read_text())
            if progress["of"] != self.identity:
                raise SystemExit(f"{folder} holds a run of another model or --kv; name another")
            self.rows = progress["rows"]
            self.state.load(folder / "state.safetensors")
            print(f"going on at {self.tokens} tokens")

    @property
    def identity(self) -> list[str]:
        """What a run's figures and state depend on."""
        return [self.kv, repr(SMALL)]

    @property
    def tokens(self) -> int:
        return int(self.rows[-1]["tokens"]) if self.rows else 0

    @torch.no_grad()
    def advance(self) -> None:
        """One step further."""
        clock, started = PartClock(), time.perf_counter()
        ids = tokens_of(self.tokens // STEP)
        with clock.watching(self.model):
            self.model(ids, self.state, logits_to_keep=1)
        seconds = time.perf_counter() - started
        before = self.rows[-1]["seconds"] if self.rows else 0.0
        row = {
            "tokens": self.tokens + STEP,
            "seconds": round(before + seconds, 3),
            "us_per_token": round(seconds / STEP * 1e6, 2),
            **{f"{k}_us": round(v / STEP * 1e6, 2) for k, v in clock.take(seconds).items()},
            "cache_bytes": self.state.nbytes,
            "resident_bytes": resident_bytes(),
            "decode_ms": round(decode_ms(self.model, self.state), 3),
        }
        self.rows.append(row)

    def save(self) -> None:
        self.state.save(self.folder / "state.safetensors")
        partial = self.folder / "progress.partial"
        partial.write_text(json.dumps({"of": self.identity, "rows": self.rows}))
        partial.replace(self.folder / "progress.json")


def plot(rows: list[dict[str, float]], path: Path) -> None:
    """Bytes and time per token against context."""
    import matplotlib.pyplot as plt

    figure, (left, right) = plt.subplots(1, 2, figsize=(11, 4))
    tokens = [row["tokens"] / 1024 for row in rows]
    parts = [key for key in rows[0] if key.endswith("_us")]
    right.stackplot(tokens, [[row[key] for row in rows] for key in parts], labels=parts)
    right.plot(tokens, [row["decode_ms"] * 1e3 for row in rows], "k--", label="decode, us")
    right.set(xlabel="context, K tokens", ylabel="us per token")
    right.legend(loc="upper left")
    for key in ("cache_bytes", "resident_bytes"):
        left.plot(tokens, [row[key] / 2**20 for row in rows], label=key)
    left.set(xlabel="context, K tokens", ylabel="MiB", ylim=(0, None))
    left.legend()
    figure.tight_layout()
    figure.savefig(path)


def mean_us(rows: list[dict[str, float]], tokens: int) -> float | None:
    """Mean cost of a token up to a depth, None if the run did not get there."""
    found = [row for row in rows if row["tokens"] == tokens]
    return found[0]["seconds"] / tokens * 1e6 if found else None


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--tokens", type=int, default=1 << 20)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--kv", default="fp32")
    parser.add_argument("--folder", type=Path, default=Path("runs/million"))
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    run = Run(options.folder, options.kv)
    while run.tokens < options.tokens:
        run.advance()
        row = run.rows[-1]
        if run.tokens % SAVE_EVERY == 0 or run.tokens >= options.tokens:
            run.save()
            rest = sum(r["us_per_token"] for r in run.rows[-4:]) / 4 * 1e-6
            left_s = rest * (options.tokens - run.tokens)
            print(
                f"{run.tokens} tokens  {row['seconds']:.0f} s  {row['us_per_token']:.0f} us/token"
                f"  decode {row['decode_ms']:.2f} ms  cache {row['cache_bytes'] >> 20} MiB"
                f"  resident {row['resident_bytes'] >> 20} MiB  at least {left_s:.0f} s to go",
                flush=True,
            )
    near, far = mean_us(run.rows, 1 << 13), mean_us(run.rows, 1 << 17)
    if near and far:
        print(f"mean to 8K {near:.0f} us, to 128K {far:.0f} us, ratio {far / near:.2f}")
    plot(run.rows, options.folder / "million.png")
    write_results("model_million", run.rows)


if __name__ == "__main__":
    main()
