"""Drafts of a trained MTP block: how many are accepted, and what that is worth in speed.

    python benchmarks/training_mtp.py --folder runs/mtp [--steps 400] [--measure-only]

Trains a model of 2.0M parameters with its MTP block on the Python standard library's sources (goes
on from a snapshot in the folder), then continues held-out text greedily, plainly and with drafts of
one to three tokens. The tokens must be the same; the figures are the share of drafts accepted, the
tokens per forward pass of the model, and milliseconds per token: in plain torch, where a pass over
three tokens costs little more than over one, and in the native form, where a pass over one token is
a single call many times faster than the rest. One thread. Writes
`benchmarks/results/training_mtp.csv`.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path
from typing import NamedTuple

import torch
from results import write_results
from stdlib_text import StdlibText

from baleen.engine import DraftingSession, Sampling, Session
from baleen.kernels import Backend, using
from baleen.model import ModelConfig, Transformer, initialize
from baleen.rl.pretraining import PretrainingConfig, TextBatch, new_optimizer, train_step
from baleen.rl.snapshot import restore_snapshot, save_snapshot

VOCAB_SIZE = 1024
CONFIG = ModelConfig(
    vocab_size=VOCAB_SIZE,
    hidden_size=128,
    num_hidden_layers=4,
    num_attention_heads=4,
    head_dim=64,
    qk_rope_head_dim=16,
    q_lora_rank=64,
    o_groups=2,
    o_lora_rank=64,
    sliding_window=64,
    compress_ratios=(0, 4, 16, 4, 0),
    index_n_heads=4,
    index_head_dim=32,
    index_topk=64,  # every block of a sequence of 256
    n_routed_experts=4,
    num_experts_per_tok=2,
    moe_intermediate_size=128,
    num_hash_layers=1,
    hc_mult=2,
    hc_sinkhorn_iters=10,
    num_nextn_predict_layers=1,
    initializer_range=0.05,
)
ROWS, LENGTH = 8, 256
PROMPTS, PROMPT_TOKENS, NEW_TOKENS = 12, 96, 96
DRAFTS, REPEATS = (0, 1, 2, 3), 3


def train(folder: Path, steps: int) -> None:
    """Trains into `folder/model`."""
    text = StdlibText(folder, VOCAB_SIZE)
    config = PretrainingConfig(steps, teaches_indexer=False)
    model = initialize(Transformer(CONFIG), 0)
    optimizer = new_optimizer(model, config)
    first = restore_snapshot(folder / "snapshot.pt", model, optimizer)
    started = time.monotonic()
    for step in range(first, steps):
        batch = TextBatch.rows(text.batch(ROWS, LENGTH + 1, f"mtp|{step}"))
        metrics = train_step(model, optimizer, batch, config, step)
        if step % 20 == 0 or step == steps - 1:
            shown = "  ".join(f"{name} {value:.4f}" for name, value in metrics.items())
            print(f"step {step}  {time.monotonic() - started:.0f} s  {shown}", flush=True)
            save_snapshot(folder / "snapshot.pt", model, optimizer, step + 1)
    model.save_pretrained(folder / "model", format="fp32")


def measure(folder: Path) -> list[dict[str, object]]:
    """A row per backend and length of draft; 0 is plain decoding."""
    text = StdlibText(folder, VOCAB_SIZE)
    model = Transformer.from_pretrained(folder / "model").eval()
    prompts = text.held_out_rows(PROMPTS, PROMPT_TOKENS).tolist()
    backends = (Backend.TORCH, Backend.NATIVE)
    return [row for backend in backends for row in measure_on(backend, model, prompts)]


def measure_on(
    backend: Backend, model: Transformer, prompts: list[list[int]]
) -> list[dict[str, object]]:
    """All take turns at every prompt, and the best of the turns counts, so that a busy machine
    disturbs them alike."""
    held: dict[int, list[Decoded]] = {drafts: [] for drafts in DRAFTS}
    for prompt in prompts:
        with using(backend):
            turns = [[decode(model, prompt, drafts) for drafts in DRAFTS] for _ in range(REPEATS)]
        for drafts, same in zip(DRAFTS, zip(*turns, strict=True), strict=True):
            held[drafts].append(min(same, key=lambda decoded: decoded.cpu_s))
    rows: list[dict[str, object]] = []
    for drafts, done in held.items():
        plain = zip(done, held[0], strict=True)
        tokens = sum(len(decoded.token_ids) - 1 for decoded in done)
        drafted = sum(decoded.drafted for decoded in done)
        rows.append(
            {
                "backend": backend.value,
                "draft_tokens": drafts,
                "same_as_plain": all(ours.token_ids == theirs.token_ids for ours, theirs in plain),
                "tokens": tokens,
                "accepted_share": round(sum(d.accepted for d in done) / drafted, 3)
                if drafted
                else "",
                "tokens_per_pass": round(tokens / sum(d.passes for d in done), 2),
                "ms_per_token": round(sum(d.cpu_s for d in done) / tokens * 1000, 2),
            }
        )
        print("  ".join(f"{key} {value}" for key, value in rows[-1].items()), flush=True)
    return rows


class Decoded(NamedTuple):
    """One continuation; its time counts from the first token on, so without the prompt."""

    token_ids: list[int]
    cpu_s: float
    passes: int
    drafted: int
    accepted: int


def decode(model: Transformer, prompt: list[int], drafts: int) -> Decoded:
    session = DraftingSession(model, drafts) if drafts else Session(model)
    stream = session.generate(prompt, Sampling(max_tokens=NEW_TOKENS))
    ids = [next(stream).id]
    started = time.process_time()
    ids += [token.id for token in stream]
    cpu_s = time.process_time() - started
    if isinstance(session, DraftingSession):
        counts = (session.decode_passes, session.drafted_tokens, session.accepted_tokens)
        return Decoded(ids, cpu_s, *counts)
    return Decoded(ids, cpu_s, len(ids) - 1, 0, 0)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--folder", type=Path, required=True)
    parser.add_argument("--steps", type=int, default=400)
    parser.add_argument("--measure-only", action="store_true")
    options = parser.parse_args()
    torch.set_num_threads(1)
    if not options.measure_only:
        train(options.folder, options.steps)
    write_results("training_mtp", measure(options.folder))


if __name__ == "__main__":
    main()
