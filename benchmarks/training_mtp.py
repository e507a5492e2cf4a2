"""Drafts of a trained MTP block: how many are accepted, and what that is worth in speed.

    python benchmarks/training_mtp.py --folder runs/mtp [--steps 400] [--measure-only]

Trains a model of 1.5M parameters with its MTP block on the Python standard library's sources (goes
on from a snapshot in the folder), then continues held-out text greedily, plainly and with drafts of
one to three tokens. The tokens must be the same; the figures are the share of drafts accepted, the
tokens per forward pass of the model, and tokens per second. One thread. Writes
`benchmarks/results/training_mtp.csv`.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path

import torch
from results import write_results
from stdlib_text import StdlibText

from baleen.engine import DraftingSession, Sampling, Session
from baleen.model import ModelConfig, Transformer, initialize
from baleen.rl.pretraining import PretrainingConfig, new_optimizer, train_step
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
PROMPTS, PROMPT_TOKENS, NEW_TOKENS = 12, 96, 128


def train(folder: Path, steps: int) -> None:
    """Trains into `folder/model`."""
    text = StdlibText(folder, VOCAB_SIZE)
    config = PretrainingConfig(steps, teaches_indexer=False)
    model = initialize(Transformer(CONFIG), 0)
    optimizer = new_optimizer(model, config)
    first = restore_snapshot(folder / "snapshot.pt", model, optimizer)
    started = time.monotonic()
    for step in range(first, steps):
        metrics = train_step(
            model, optimizer, text.batch(ROWS, LENGTH + 1, f"mtp|{step}"), config, step
        )
        if step % 20 == 0 or step == steps - 1:
            shown = "  ".join(f"{name} {value:.4f}" for name, value in metrics.items())
            print(f"step {step}  {time.monotonic() - started:.0f} s  {shown}", flush=True)
            save_snapshot(folder / "snapshot.pt", model, optimizer, step + 1)
    model.save_pretrained(folder / "model", format="fp32")


def measure(folder: Path) -> list[dict[str, object]]:
    """A row per length of draft; 0 is plain decoding."""
    text = StdlibText(folder, VOCAB_SIZE)
    model = Transformer.from_pretrained(folder / "model").eval()
    prompts = text.held_out_rows(PROMPTS, PROMPT_TOKENS).tolist()
    sampling = Sampling(max_tokens=NEW_TOKENS)
    rows: list[dict[str, object]] = []
    plain: list[list[int]] = []
    for drafts in (0, 1, 2, 3):
        sessions = [DraftingSession(model, drafts) if drafts else Session(model) for _ in prompts]
        started = time.process_time()
        done = [
            [token.id for token in session.generate(prompt, sampling)]
            for session, prompt in zip(sessions, prompts, strict=True)
        ]
        spent_s = time.process_time() - started
        plain = plain or done
        tokens = sum(map(len, done))
        row: dict[str, object] = {
            "draft_tokens": drafts,
            "same_as_plain": done == plain,
            "tokens": tokens,
            "accepted_share": "",
            "tokens_per_pass": 1.0,
            "tok_per_cpu_s": round(tokens / spent_s, 1),
        }
        held = [session for session in sessions if isinstance(session, DraftingSession)]
        if held:
            accepted = sum(session.accepted_tokens for session in held)
            row["accepted_share"] = round(accepted / sum(s.drafted_tokens for s in held), 3)
            row["tokens_per_pass"] = round(tokens / sum(s.decode_passes for s in held), 2)
        rows.append(row)
        print("  ".join(f"{key} {value}" for key, value in row.items()), flush=True)
    return rows


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
