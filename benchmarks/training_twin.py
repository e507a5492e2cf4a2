"""CSA/HCA beside a full-attention twin: loss on the same text, and the cache that each needs.

    python benchmarks/training_twin.py --folder runs/twin [--steps 1000] [--minutes 55]

Two models of 2.2M parameters see the same sequences of 4,096 tokens of the Python standard
library's sources in the same order: one with the architecture's schedule of layers, one whose
layers all attend every token (wider experts make its parameters equal in number). The indexer's
loss trains only the indexer. Goes on from the snapshots in the folder and ends early, to be called
again, after `--minutes`. One thread; two calls with `--model` use two cores. `curve.csv` in the
folder holds the training losses; with the last step the held-out losses go to
`benchmarks/results/training_twin.csv`.

The twin's attention runs on torch's causal kernel instead of this package's tiles, which are made
for windows; `--check` shows that both give the same loss.
"""

from __future__ import annotations

import argparse
import csv
import dataclasses
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from results import write_results
from stdlib_text import StdlibText
from torch import Tensor
from torch.nn import functional as F

import baleen.model.attention
from baleen.kernels.attend import Attended, attend
from baleen.model import ModelConfig, Transformer, initialize
from baleen.model.losses import next_token_loss
from baleen.rl.pretraining import PretrainingConfig, TextBatch, new_optimizer, train_step
from baleen.rl.snapshot import restore_snapshot, save_snapshot

VOCAB_SIZE, LENGTH = 1024, 4096
SPARSE = ModelConfig(
    vocab_size=VOCAB_SIZE,
    hidden_size=128,
    num_hidden_layers=6,
    num_attention_heads=4,
    head_dim=64,
    qk_rope_head_dim=16,
    q_lora_rank=64,
    o_groups=2,
    o_lora_rank=64,
    sliding_window=128,
    compress_ratios=(0, 4, 128, 4, 128, 4),
    index_n_heads=4,
    index_head_dim=32,
    index_topk=128,  # of 1,024 blocks
    n_routed_experts=8,
    num_experts_per_tok=2,
    moe_intermediate_size=64,
    num_hash_layers=1,
    hc_mult=2,
    hc_sinkhorn_iters=10,
    num_nextn_predict_layers=0,
    initializer_range=0.05,
)
FULL = dataclasses.replace(
    SPARSE, compress_ratios=(0,) * 6, sliding_window=LENGTH, moe_intermediate_size=74
)
MODELS = {"csa_hca": SPARSE, "full": FULL}
HELD_OUT_ROWS = 12
SAVE_EVERY = 10


@contextmanager
def causal_kernel() -> Iterator[None]:
    """Full attention by torch's causal kernel; the sink is a zero key in a dimension of its own."""

    def attend_all(q_BTHc: Tensor, sinks_H: Tensor, ring: Tensor, kv_BTc: Tensor, *_: object):  # type: ignore[no-untyped-def]
        pad, width = 8, q_BTHc.shape[-1]
        sinks = F.pad(sinks_H.unsqueeze(1), (0, pad - 1)).expand(*q_BTHc.shape[:2], -1, -1)
        queries = torch.cat([q_BTHc * width**-0.5, sinks], dim=-1)
        keys = F.pad(kv_BTc, (0, pad, 1, 0))
        keys[:, 0, width] = 1.0
        # one idle query in front, so that query t sees the sink and the keys 0 .. t
        queries = F.pad(queries.transpose(1, 2), (0, 0, 1, 0))
        keys = keys.unsqueeze(1).expand(-1, queries.shape[1], -1, -1)
        out = F.scaled_dot_product_attention(queries, keys, keys, is_causal=True, scale=1.0)
        return Attended(out[:, :, 1:, :width].transpose(1, 2), None)

    baleen.model.attention.attend = attend_all  # type: ignore[assignment]
    try:
        yield
    finally:
        baleen.model.attention.attend = attend


@contextmanager
def attention_of(name: str) -> Iterator[None]:
    if name == "full":
        with causal_kernel():
            yield
    else:
        yield


def held_out_loss(name: str, model: Transformer, rows: Tensor) -> float:
    """Mean over the held-out rows; with gradients on, so that the pass is that of training."""
    total = 0.0
    for row in rows.split(1):
        with attention_of(name):
            total += next_token_loss(model, model.hidden(row[:, :-1]), row[:, 1:]).item()
    return total / len(rows)


def check() -> None:
    """The causal kernel and the package's attention give one loss."""
    config = dataclasses.replace(FULL, sliding_window=512)
    model = initialize(Transformer(config), 1)
    ids = torch.randint(0, VOCAB_SIZE, (1, 512))
    plain = held_out_loss("csa_hca", model, ids)
    print(f"package {plain:.6f}, causal kernel {held_out_loss('full', model, ids):.6f}")


def train(
    folder: Path, steps: int, deadline_s: float, names: list[str]
) -> dict[str, Transformer] | None:
    """The named models, a step each in turn; None if time ran out first."""
    text = StdlibText(folder, VOCAB_SIZE)
    config = PretrainingConfig(steps, warmup_steps=min(50, max(1, steps // 10)))
    models = {name: initialize(Transformer(MODELS[name]), 0) for name in names}
    optimizers = {name: new_optimizer(model, config) for name, model in models.items()}
    first = {n: restore_snapshot(folder / f"{n}.pt", models[n], optimizers[n]) for n in models}
    for step in range(min(first.values()), steps):
        if time.monotonic() > deadline_s:
            return None
        batch = TextBatch.rows(text.batch(1, LENGTH + 1, f"twin|{step}"))
        for name, model in models.items():
            if step < first[name]:
                continue  # cut off between the two snapshots
            started = time.process_time()
            with attention_of(name):
                metrics = train_step(model, optimizers[name], batch, config, step)
            log(folder / "curve.csv", step, name, metrics, time.process_time() - started)
            if (step + 1) % SAVE_EVERY == 0 or step == steps - 1:
                save_snapshot(folder / f"{name}.pt", model, optimizers[name], step + 1)
    return models


def log(path: Path, step: int, name: str, metrics: dict[str, float], cpu_s: float) -> None:
    row = {"step": step, "model": name, "cpu_s": round(cpu_s, 2)}
    row |= {key: round(metrics.get(key, 0.0), 4) for key in ("loss", "indexer_kl", "grad_norm")}
    fresh = not path.exists()
    with path.open("a", newline="") as file:
        writer = csv.DictWriter(file, row)
        if fresh:
            writer.writeheader()
        writer.writerow(row)
    print("  ".join(f"{key} {value}" for key, value in row.items()), flush=True)


@torch.no_grad()
def cache_bytes(model: Transformer) -> int:
    """What the state of one sequence of full length takes in bf16."""
    state = model.new_state(kv_dtype="bf16")
    model(torch.zeros(1, LENGTH, dtype=torch.int64), state, logits_to_keep=1)
    return state.nbytes


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--folder", type=Path, required=True)
    parser.add_argument("--steps", type=int, default=1000)
    parser.add_argument("--minutes", type=float, default=1e9)
    parser.add_argument("--model", choices=[*MODELS], help="train this one alone, beside the other")
    parser.add_argument("--check", action="store_true")
    options = parser.parse_args()
    torch.set_num_threads(1)
    if options.check:
        check()
        return
    deadline_s = time.monotonic() + options.minutes * 60
    names = [options.model] if options.model else [*MODELS]
    models = train(options.folder, options.steps, deadline_s, names)
    if models is None:
        print("time is up; call again to go on")
        return
    if options.model:
        print("done; call again without --model to measure both")
        return
    rows = StdlibText(options.folder, VOCAB_SIZE).held_out_rows(HELD_OUT_ROWS, LENGTH + 1)
    found: list[dict[str, object]] = []
    for name, model in models.items():
        found.append(
            {
                "model": name,
                "parameters": sum(p.numel() for p in model.parameters()),
                "tokens_seen": options.steps * LENGTH,
                "held_out_loss": round(held_out_loss(name, model, rows), 4),
                "cache_bytes_at_4096": cache_bytes(model),
            }
        )
        print("  ".join(f"{key} {value}" for key, value in found[-1].items()), flush=True)
    write_results("training_twin", found)


if __name__ == "__main__":
    main()
