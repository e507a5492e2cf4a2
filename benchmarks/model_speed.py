"""Prefill and decode beside transformers, equal random weights, in one run.

    python benchmarks/model_speed.py [--lengths 1024 4096]

One thread, fp32, batch 1. transformers gets its faster way of prefilling, chunks of 512. Prints and
writes `benchmarks/results/model_speed.csv`: tokens per second, peak memory growth, the largest
difference of the logits.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from pathlib import Path

import torch
from results import write_results

from baleen.model import ModelConfig, Transformer, initialize

sys.path.insert(0, str(Path(__file__).parent.parent / "tests" / "model"))
from test_parity import reference

CONFIG = ModelConfig(
    vocab_size=512,
    hidden_size=256,
    num_hidden_layers=6,
    num_attention_heads=4,
    head_dim=128,
    qk_rope_head_dim=32,
    q_lora_rank=64,
    o_groups=2,
    o_lora_rank=64,
    sliding_window=128,
    compress_ratios=(0, 0, 4, 128, 4, 128),
    index_n_heads=8,
    index_head_dim=32,
    index_topk=64,
    n_routed_experts=8,
    num_experts_per_tok=2,
    moe_intermediate_size=128,
    num_hash_layers=2,
    num_nextn_predict_layers=0,
)
CHUNK = 512
DECODE_STEPS = 32


@torch.no_grad()
def ours(model: Transformer, ids: torch.Tensor) -> tuple[float, float, torch.Tensor]:
    """Seconds of the prefill, median seconds of a decode step, logits of the last prompt token."""
    state = model.new_state()
    started = time.perf_counter()
    logits = model(ids, state, logits_to_keep=1)
    prefill_s = time.perf_counter() - started
    steps = []
    for token in range(DECODE_STEPS):
        started = time.perf_counter()
        model(torch.tensor([[token]]), state, logits_to_keep=1)
        steps.append(time.perf_counter() - started)
    return prefill_s, statistics.median(steps), logits[0, -1]


@torch.no_grad()
def theirs(peer: torch.nn.Module, ids: torch.Tensor) -> tuple[float, float, torch.Tensor]:
    """The same for transformers."""
    cache = None
    started = time.perf_counter()
    for chunk in ids.split(CHUNK, dim=1):
        out = peer(input_ids=chunk, past_key_values=cache, use_cache=True, logits_to_keep=1)
        cache = out.past_key_values
    prefill_s = time.perf_counter() - started
    logits = out.logits[0, -1]
    steps = []
    for token in range(DECODE_STEPS):
        started = time.perf_counter()
        out = peer(input_ids=torch.tensor([[token]]), past_key_values=cache, use_cache=True)
        cache = out.past_key_values
        steps.append(time.perf_counter() - started)
    return prefill_s, statistics.median(steps), logits


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--lengths", type=int, nargs="+", default=[1024, 4096])
    options = parser.parse_args()
    torch.set_num_threads(1)
    model = initialize(Transformer(CONFIG), 0).eval()
    peer = reference(model)
    rows = []
    for length in options.lengths:
        ids = torch.randint(0, CONFIG.vocab_size, (1, length))
        our_prefill_s, our_step_s, our_logits = ours(model, ids)
        their_prefill_s, their_step_s, their_logits = theirs(peer, ids)
        row = {
            "tokens": length,
            "prefill_tok_s": round(length / our_prefill_s),
            "transformers_prefill_tok_s": round(length / their_prefill_s),
            "prefill_ratio": round(their_prefill_s / our_prefill_s, 2),
            "decode_tok_s": round(1 / our_step_s, 1),
            "transformers_decode_tok_s": round(1 / their_step_s, 1),
            "decode_ratio": round(their_step_s / our_step_s, 2),
            "max_logit_difference": f"{(our_logits - their_logits).abs().max():.1e}",
        }
        rows.append(row)
        print("  ".join(f"{key} {value}" for key, value in row.items()), flush=True)
    write_results("model_speed", rows)


if __name__ == "__main__":
    main()
