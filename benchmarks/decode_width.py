"""One CSA layer of V4-Flash's full width: which share of the memory's bandwidth decoding reaches.

    python benchmarks/decode_width.py [--tokens 64] [--threads 1] [--context 4096]

64 heads of 512, 256 experts of 2048 of which 6 and the shared one are asked, random weights held
packed as released (FP4 experts, the rest FP8 and bf16; 3.7 GB). Scores choose the experts, so each
token asks for others. Bytes are those that a token has to read once: the matrices that it
multiplies by, the experts that it chose, the entries that it attends and the indexer's keys.
Beside it, in the same run, what reading memory by one sum, and copying it, reaches with as many
threads. Writes `benchmarks/results/decode_width.csv`.
"""

from __future__ import annotations

import argparse
import dataclasses
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import torch
from decode_depth import drawn_past
from flash_sparse import SHARD_BYTES
from results import write_results

from baleen.model import ModelConfig, Transformer
from baleen.model.checkpoint import file_skeleton
from baleen.model.formats.config_text import config_text
from baleen.model.formats.packed import PackedExperts, StoredMatrix
from baleen.model.formats.stored import Format
from baleen.model.formats.writer import Planned, write_folder

LAYER = dataclasses.replace(
    ModelConfig.preset("v4-flash"),
    vocab_size=512,
    num_hidden_layers=1,
    compress_ratios=(4,),
    num_hash_layers=0,
    num_nextn_predict_layers=0,
)
SCALES = (116, 120)
"""Bytes of the random UE8M0 scales: powers of two that keep activations of ordinary size."""
COPY_BYTES = 1 << 30


def load(folder: Path) -> Transformer:
    """The layer from a folder of holes, its codes then drawn at random."""
    layout = Format("fp4")
    (folder / "config.json").write_text(config_text(LAYER, None, layout), "utf-8")
    planned = [
        Planned(name, dtype, shape, lambda: torch.empty(0))  # never asked for
        for name, dtype, shape in file_skeleton(LAYER, layout)
    ]
    write_folder(folder, planned, SHARD_BYTES, hollow=True)
    model = Transformer.from_pretrained(folder, dtype=torch.bfloat16, weights="packed")
    for name, tensor in (*model.named_parameters(), *model.named_buffers()):
        if tensor.dtype != torch.uint8:
            tensor.normal_(std=0.02 if tensor.dim() > 1 else 0.5)
        elif "scales" in name:
            tensor.random_(*SCALES)
        elif "experts" in name and "shared" not in name:
            tensor.random_(0, 256)  # every byte is two FP4 codes
        else:
            tensor.random_(0, 120)  # E4M3 without NaN; its signs do not matter here
    return model


def token_bytes(model: Transformer, context: int) -> int:
    """What one token reads; the embedding and the head are another layer's."""
    block = model.layers[0]
    total = 0
    for name, module in block.named_modules():
        if isinstance(module, PackedExperts):
            whole = sum(buffer.nbytes for buffer in module.buffers())
            total += whole * LAYER.num_experts_per_tok // LAYER.n_routed_experts
        elif isinstance(module, StoredMatrix) and ".experts." not in name:
            total += sum(buffer.nbytes for buffer in module.buffers(recurse=False))
        total += sum(weight.nbytes for weight in module.parameters(recurse=False))
    blocks = context // 4
    latent = LAYER.head_dim * 2  # bf16
    attended = LAYER.sliding_window + min(LAYER.index_topk, blocks)
    return total + attended * latent + blocks * LAYER.index_head_dim * 2


def bandwidth_gbs(run: Callable[[], object], size_bytes: int) -> float:
    """GB/s of the best of seven."""
    best = float("inf")
    for _ in range(7):
        started = time.perf_counter()
        run()
        best = min(best, time.perf_counter() - started)
    return size_bytes / best / 1e9


@torch.no_grad()
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--tokens", type=int, default=64)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--context", type=int, default=4096)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    with tempfile.TemporaryDirectory() as folder:
        model = load(Path(folder))
    state = drawn_past(model, options.context, "bf16")
    times = []
    for token in range(options.tokens):
        started = time.perf_counter()
        streams = model.streams(torch.tensor([[token]]), state)
        times.append(time.perf_counter() - started)
    assert torch.isfinite(streams).all()
    median_s, size_bytes = statistics.median(times), token_bytes(model, options.context)
    source = torch.ones(COPY_BYTES // 4)
    target = torch.zeros_like(source)
    read_gbs = bandwidth_gbs(source.sum, COPY_BYTES)
    row = {
        "threads": options.threads,
        "context": options.context,
        "token_mb": round(size_bytes / 1e6, 1),
        "token_ms": round(median_s * 1e3, 2),
        "token_gbs": round(size_bytes / median_s / 1e9, 2),
        "read_gbs": round(read_gbs, 2),
        "copy_gbs": round(2 * bandwidth_gbs(lambda: target.copy_(source), COPY_BYTES), 2),
        "share_of_read": round(size_bytes / median_s / 1e9 / read_gbs, 3),
    }
    print("  ".join(f"{key} {value}" for key, value in row.items()))
    write_results("decode_width", [row])


if __name__ == "__main__":
    main()
