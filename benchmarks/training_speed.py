"""Training steps per second beside transformers: equal sizes, equal weights, equal tokens.

    python benchmarks/training_speed.py [--shapes 8x256 2x1024 1x4096] [--repeats 3]

One thread, fp32, forward and backward pass of the next token's loss, no optimiser (its step
costs both sides the same); the indexer's loss is off, as transformers has none. Both sides take
turns, the best of the repeats counts, in CPU seconds of this process, so that a busy machine
disturbs little. The gradients of both sides are compared, too. Writes
`benchmarks/results/training_speed.csv`.
"""

from __future__ import annotations

import argparse
import dataclasses
import sys
import time
from collections.abc import Callable
from pathlib import Path

import torch
from results import write_results
from torch.nn import functional as F
from training_twin import SPARSE

from baleen.model import Transformer, initialize
from baleen.model.losses import next_token_loss

sys.path.insert(0, str(Path(__file__).parent.parent / "tests" / "model"))
from test_parity import reference

# transformers' indexer breaks ties by shape; with so many heads there are none
CONFIG = dataclasses.replace(SPARSE, index_n_heads=32, index_head_dim=16, index_topk=64)


def timed(step: Callable[[], float]) -> tuple[float, float]:
    """CPU seconds and the loss."""
    started = time.process_time()
    loss = step()
    return time.process_time() - started, loss


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--shapes", nargs="+", default=["8x256", "2x1024", "1x2048", "1x4096"])
    parser.add_argument("--repeats", type=int, default=3)
    options = parser.parse_args()
    torch.set_num_threads(1)
    model = initialize(Transformer(CONFIG), 0).train()
    peer = reference(model).train()
    rows: list[dict[str, object]] = []
    for shape in options.shapes:
        batch, length = map(int, shape.split("x"))
        tokens = torch.randint(0, CONFIG.vocab_size, (batch, length + 1))
        ids, targets = tokens[:, :-1], tokens[:, 1:]

        def ours(ids: torch.Tensor = ids, targets: torch.Tensor = targets) -> float:
            model.zero_grad(set_to_none=True)
            loss = next_token_loss(model, model.hidden(ids), targets)
            loss.backward()
            return loss.item()

        def theirs(ids: torch.Tensor = ids, targets: torch.Tensor = targets) -> float:
            peer.zero_grad(set_to_none=True)
            logits = peer(input_ids=ids, use_cache=False).logits
            loss = F.cross_entropy(logits.flatten(0, 1).float(), targets.flatten())
            loss.backward()
            return loss.item()

        pairs = [(timed(ours), timed(theirs)) for _ in range(options.repeats)]
        our_s, their_s = (min(pair[side][0] for pair in pairs) for side in (0, 1))
        mine = model.layers[1].attn.wkv.weight.grad
        other = peer.model.layers[1].self_attn.kv_proj.weight.grad
        row = {
            "shape": shape,
            "tok_s": round(batch * length / our_s),
            "transformers_tok_s": round(batch * length / their_s),
            "ratio": round(their_s / our_s, 2),
            "loss_gap": f"{abs(pairs[0][0][1] - pairs[0][1][1]):.1e}",
            "gradient_gap": f"{(mine - other).abs().max() / other.abs().max():.1e}",
        }
        rows.append(row)
        print("  ".join(f"{key} {value}" for key, value in row.items()), flush=True)
    write_results("training_speed", rows)


if __name__ == "__main__":
    main()
