"""What a pass over several tokens costs beside a pass over one, by size of the model.

    python benchmarks/decode_passes.py [--repeats 20]

Speculation pays if `(accepted + 1) * pass(1) > pass(1 + drafts) + drafts * draft`. Random models of
growing width and depth, batch 1, native kernels, one thread; each row gives the milliseconds of a
pass over 1 to 4 tokens and of one draft by the MTP block, and the acceptance of a single draft from
which on it pays. Weights decoded (fp32) and packed (FP8, experts FP4). All take turns; the best of
the turns counts. The block is one layer more, so in a shallow model a draft is dear.
"""

from __future__ import annotations

import argparse
import dataclasses
import tempfile
import time
from collections.abc import Callable

import torch
from results import write_results
from training_mtp import CONFIG

from baleen.model import Transformer, initialize
from baleen.model.mtp import draft, new_draft_state

SHAPES = ((128, 4), (256, 4), (512, 4), (128, 16), (256, 16), (512, 16))
"""Width and layers."""
TOKENS = (1, 2, 3, 4)
PAST = 96


def make(width: int, layers: int) -> Transformer:
    """The model of `training_mtp.py`, all widths grown alike and its layers repeated."""
    grown = width // CONFIG.hidden_size
    shape = {
        name: getattr(CONFIG, name) * grown
        for name in ("hidden_size", "moe_intermediate_size", "q_lora_rank", "num_attention_heads")
    }
    ratios = (*CONFIG.compress_ratios[:4] * (layers // 4), 0)
    deep = {"num_hidden_layers": layers, "compress_ratios": ratios}
    return initialize(Transformer(dataclasses.replace(CONFIG, **shape, **deep)), 0)


def passes(model: Transformer, repeats: int) -> dict[str, float]:
    """Milliseconds of a pass over so many tokens, and of a draft."""
    ids = torch.randint(2, CONFIG.vocab_size, (1, PAST + max(TOKENS)))
    state, drafts = model.new_state(), new_draft_state(model)
    streams = model.streams(ids[:, :PAST], state)
    draft(model, streams[:, :-1], ids[:, 1:PAST], drafts)
    mark, draft_mark = state.mark(), drafts.mark()

    def verify(count: int) -> None:
        state.rollback(mark)
        model.logits(model.readout(model.streams(ids[:, PAST : PAST + count], state)))

    def propose() -> None:
        drafts.rollback(draft_mark)
        made = draft(model, streams[:, -1:], ids[:, PAST : PAST + 1], drafts)
        model.logits(made.hidden_BTd[:, -1])

    runs: dict[str, Callable[[], None]] = {
        f"pass_{count}_ms": lambda count=count: verify(count)  # type: ignore[misc]
        for count in TOKENS
    }
    runs["draft_ms"] = propose
    best = dict.fromkeys(runs, float("inf"))
    for _ in range(repeats):
        for name, run in runs.items():
            started = time.process_time()
            run()
            best[name] = min(best[name], (time.process_time() - started) * 1000)
    return best


@torch.no_grad()
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--repeats", type=int, default=20)
    options = parser.parse_args()
    torch.set_num_threads(1)
    rows: list[dict[str, object]] = []
    for width, layers in SHAPES:
        plain = make(width, layers)
        with tempfile.TemporaryDirectory() as folder:
            plain.save_pretrained(folder, format="fp4")
            packed = Transformer.from_pretrained(folder, weights="packed")
        for weights, model in (("fp32", plain), ("packed", packed)):
            took = passes(model, options.repeats)
            share = (took["pass_2_ms"] + took["draft_ms"]) / took["pass_1_ms"] - 1
            rows.append(
                {
                    "width": width,
                    "layers": layers,
                    "million_parameters": round(sum(p.numel() for p in plain.parameters()) / 1e6),
                    "weights": weights,
                    **{name: round(value, 3) for name, value in took.items()},
                    "pays_from_acceptance": round(share, 2),
                }
            )
            print("  ".join(f"{key} {value}" for key, value in rows[-1].items()), flush=True)
    write_results("decode_passes", rows)


if __name__ == "__main__":
    main()
