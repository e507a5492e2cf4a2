"""llama.cpp loads a checkpoint that we saved and agrees with our logits.

    python benchmarks/checkpoint_llama.py [--tokens 300] [--chunk 64]

A random model with every layer kind is saved, converted by llama.cpp's own script, and both compute
the same tokens from the same stored weights. llama.cpp rounds in three places, and each row adds or
removes one of them:

- its flash attention casts keys to fp16 ("flash" off in a row leaves it out);
- it multiplies FP4 experts by activations rounded to 8 bits, Q8_0; "experts: fp4, quiet" are those
  that add almost nothing, "ours rounds" computes the same rounding on our side. Codes then agree
  until fp32 noise takes one over a border, and from there on differences grow: so the first 32
  positions have a column of their own;
- it turns FP8 matrices into Q8_0.

Where nothing rounds, or both sides do, the two must agree closely, and the script fails if they do
not. Needs `benchmarks/peers/llama_cpp.py` built (it builds it, about ten minutes).
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import NamedTuple
from unittest import mock

import numpy as np
import torch
from results import write_results

from baleen.kernels import swiglu
from baleen.model import ModelConfig, Transformer, initialize
from baleen.model.checkpoint import named_tensors
from baleen.model.formats.config_text import config_text
from baleen.model.formats.plan import plan_tensor
from baleen.model.formats.stored import EXPERT, Format, Stored
from baleen.model.formats.writer import write_folder
from baleen.model.moe import ExpertOrder, Experts, Routing
from peers import llama_cpp

CONFIG = ModelConfig(
    vocab_size=512,
    hidden_size=256,
    num_hidden_layers=6,
    num_attention_heads=4,
    head_dim=128,
    q_lora_rank=64,
    o_groups=2,
    o_lora_rank=64,
    compress_ratios=(0, 0, 4, 128, 4, 128),
    index_n_heads=32,
    index_topk=64,
    n_routed_experts=8,
    num_experts_per_tok=2,
    moe_intermediate_size=256,
    num_nextn_predict_layers=0,
    expert_dtype="fp4",
)


def make_model(quiet_experts: bool) -> Transformer:
    """Random weights, norms, sinks and biases too; quiet experts add almost nothing."""
    model = initialize(Transformer(CONFIG), 0)
    generator = torch.Generator().manual_seed(1)
    for parameter in model.parameters():
        noise = torch.randn(parameter.shape, generator=generator)
        parameter.add_(noise * (0.2 if parameter.dim() < 2 else 0.04))
    for block in model.layers if quiet_experts else ():
        block.ffn.experts.w2.mul_(2.0**-20)
    return model


def save(model: Transformer, folder: Path, dense: str) -> None:
    """Experts in FP4, dense matrices as asked, and a vocabulary of bytes for the converter."""
    if dense == "fp8":
        model.save_pretrained(folder, format="fp4")
    else:
        folder.mkdir()
        planned = []
        for name, tensor in named_tensors(model):
            stored = Stored(tensor, None)
            layout = Format.FP4 if EXPERT.search(name) else Format(dense)
            planned += plan_tensor(name, lambda stored=stored: stored, stored, layout)
        write_folder(folder, planned)
        (folder / "config.json").write_text(config_text(CONFIG, None, Format.FP4))


def convert(folder: Path, peer: llama_cpp.LlamaCpp) -> Path:
    """GGUF through llama.cpp's own converter; only the vocabulary, which is none, is ours."""
    target = folder / "model.gguf"
    program = Path(__file__).parent / "peers" / "llama_convert.py"
    command = [sys.executable, str(program), str(peer.source), str(folder), str(target)]
    subprocess.run([*command, str(CONFIG.vocab_size)], check=True, stdout=sys.stderr)
    return target


def their_logits(
    model: Path, ids: list[int], chunk: int, peer: llama_cpp.LlamaCpp, exact: bool
) -> torch.Tensor:
    """`exact` leaves llama.cpp's flash attention off, which casts keys to fp16."""
    asked, answer = model.with_suffix(".ids"), model.with_suffix(".logits")
    np.array(ids, dtype=np.int32).tofile(asked)
    command = [str(peer.logits), str(model), str(asked), "1", str(chunk), str(answer)]
    subprocess.run(command + ["exact"] * exact, check=True, stderr=subprocess.DEVNULL)
    return torch.from_numpy(np.fromfile(answer, dtype=np.float32)).view(len(ids), -1)


def q8_0(x: torch.Tensor) -> torch.Tensor:
    """Rounded as GGML's Q8_0: blocks of 32, 8 bits, a scale in fp16."""
    blocks = x.unflatten(-1, (-1, 32))
    scale = blocks.abs().amax(-1, keepdim=True) / 127
    units = torch.where(scale > 0, blocks / scale, 0.0)
    codes = units.sign() * (units.abs() + 0.5).floor()
    return (codes * scale.half().float()).flatten(-2)


def rounded_experts(self: Experts, x_Ld: torch.Tensor, routing: Routing) -> torch.Tensor:
    """`Experts.forward` in llama.cpp's order, weights last, and with its rounding."""
    order = ExpertOrder.of(routing, self.w1.shape[0])
    outs = []
    runs = zip(
        q8_0(x_Ld)[order.tokens_R].split(order.sizes),
        order.weights_R.split(order.sizes),
        strict=True,
    )
    for expert, (x, weights) in enumerate(runs):
        hidden = q8_0(swiglu(x @ self.w1[expert].T, x @ self.w3[expert].T, self.limit))
        outs.append((hidden @ self.w2[expert].T) * weights.unsqueeze(-1))
    return order.summed(torch.cat(outs))


class Case(NamedTuple):
    """What one row compares."""

    dense: str
    quiet: bool = False
    flash: bool = False
    ours_rounds: bool = False


CASES = (
    Case("fp32", quiet=True, flash=True),
    Case("fp32", quiet=True),
    Case("fp32"),
    Case("fp32", ours_rounds=True),
    Case("bf16"),
    Case("fp8"),
    Case("fp8", flash=True),
)


def compare(case: Case, ids: list[int], chunk: int, peer: llama_cpp.LlamaCpp) -> dict[str, object]:
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch) / "model"
        save(make_model(case.quiet), folder, case.dense)
        model = Transformer.from_pretrained(folder)
        theirs = their_logits(convert(folder, peer), ids, chunk, peer, not case.flash)
    forward = rounded_experts if case.ours_rounds else Experts.forward
    with mock.patch.object(Experts, "forward", forward):
        ours = model(torch.tensor([ids]))[0]
    errors = (ours - theirs).abs().amax(-1) / ours.abs().max()
    equal = (ours.argmax(-1) == theirs.argmax(-1)).float().mean().item()
    return {
        "experts": "fp4, quiet" if case.quiet else "fp4",
        "dense": case.dense,
        "their_flash_attention": case.flash,
        "ours_rounds_activations": case.ours_rounds,
        "tokens": len(ids),
        "median_error": f"{errors.median().item():.2e}",
        "first_32_median": f"{errors[:32].median().item():.2e}",
        "worst_error": f"{errors.max().item():.2e}",
        "equal_argmax": round(equal, 4),
        "llama_cpp_python": llama_cpp.VERSION,
    }


@torch.no_grad()
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--tokens", type=int, default=300)
    parser.add_argument("--chunk", type=int, default=64)
    options = parser.parse_args()
    peer = llama_cpp.build()
    generator = torch.Generator().manual_seed(2)
    ids = torch.randint(0, CONFIG.vocab_size, (options.tokens,), generator=generator).tolist()
    rows = []
    for case in CASES:
        rows.append(compare(case, ids, options.chunk, peer))
        print(json.dumps(rows[-1]), flush=True)
    write_results("checkpoint_llama", rows)
    unrounded, both_rounded = rows[1], rows[3]
    if (
        float(str(unrounded["worst_error"])) > 1e-4
        or float(str(both_rounded["first_32_median"])) > 1e-4
    ):
        sys.exit("llama.cpp and baleen disagree")


if __name__ == "__main__":
    main()
