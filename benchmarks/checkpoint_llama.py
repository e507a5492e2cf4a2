"""llama.cpp loads a checkpoint that we saved and agrees with our logits.

    python benchmarks/checkpoint_llama.py [--tokens 300] [--chunk 64]

A random model with every layer kind is saved, converted by llama.cpp's own script, and both compute
the same tokens from the same stored weights. llama.cpp multiplies FP4 experts by activations that
it rounds to 8 bits, and turns FP8 matrices into Q8_0. So there are four rows: experts that add
almost nothing and fp32 elsewhere, where the two must agree closely and the script fails if they do
not; then FP4 experts beside fp32, bf16 and FP8, as stored by `save_pretrained(format="fp4")`. Needs
`benchmarks/peers/llama_cpp.py` built (it builds it, about ten minutes).
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
import torch
from results import write_results

from baleen.model import ModelConfig, Transformer, initialize
from baleen.model.checkpoint import named_tensors
from baleen.model.formats.config_text import config_text
from baleen.model.formats.plan import plan_tensor
from baleen.model.formats.stored import EXPERT, Format, Stored
from baleen.model.formats.writer import write_folder
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


def their_logits(model: Path, ids: list[int], chunk: int, peer: llama_cpp.LlamaCpp) -> torch.Tensor:
    asked, answer = model.with_suffix(".ids"), model.with_suffix(".logits")
    np.array(ids, dtype=np.int32).tofile(asked)
    command = [str(peer.logits), str(model), str(asked), "1", str(chunk), str(answer)]
    subprocess.run(command, check=True, stderr=subprocess.DEVNULL)
    return torch.from_numpy(np.fromfile(answer, dtype=np.float32)).view(len(ids), -1)


@torch.no_grad()
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--tokens", type=int, default=300)
    parser.add_argument("--chunk", type=int, default=64)
    options = parser.parse_args()
    peer = llama_cpp.build()
    rows: list[dict[str, object]] = []
    generator = torch.Generator().manual_seed(2)
    ids = torch.randint(0, CONFIG.vocab_size, (options.tokens,), generator=generator).tolist()
    for dense, quiet in (("fp32", True), ("fp32", False), ("bf16", False), ("fp8", False)):
        with tempfile.TemporaryDirectory() as scratch:
            folder = Path(scratch) / "model"
            save(make_model(quiet), folder, dense)
            ours = Transformer.from_pretrained(folder)(torch.tensor([ids]))[0]
            theirs = their_logits(convert(folder, peer), ids, options.chunk, peer)
        errors = (ours - theirs).abs().amax(-1) / ours.abs().max()
        rows.append(
            {
                "experts": "fp4, quiet" if quiet else "fp4",
                "dense": dense,
                "tokens": options.tokens,
                "median_error": f"{errors.median().item():.2e}",
                "worst_error": f"{errors.max().item():.2e}",
                "equal_argmax": round(
                    (ours.argmax(-1) == theirs.argmax(-1)).float().mean().item(), 4
                ),
                "llama_cpp_python": llama_cpp.VERSION,
            }
        )
        print(json.dumps(rows[-1]), flush=True)
    write_results("checkpoint_llama", rows)
    if float(str(rows[0]["median_error"])) > 1e-3 or float(str(rows[0]["worst_error"])) > 1e-2:
        sys.exit("llama.cpp and baleen disagree")


if __name__ == "__main__":
    main()
