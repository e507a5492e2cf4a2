"""The Triton kernels at the layer shapes of V4-Flash and V4-Pro, beside a copy's bandwidth.

    python benchmarks/kernels_gpu.py [--quick] [--compile]

Decoding steps at a context of 128K tokens: for each operation and batch the time, the bytes that
must be read once (entries attended, keys scored, experts used), what that is in GB/s and as a share
of the bandwidth that a copy of 1 GiB reaches on the same GPU, and the error against the plain-torch
form on the same GPU. The caches between two runs are overwritten.

Without a GPU nothing can be measured. Then, or with `--compile`, each kernel is compiled for an
H100 and what the compiler says of it is printed, so that at least this is known to work.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Callable, Iterator
from typing import NamedTuple

os.environ.setdefault("TRITON_DEFAULT_FP_FUSION", "1")

import torch
from results import write_results
from torch import Tensor

from baleen.kernels import (
    Backend,
    Blocks,
    Entries,
    Kind,
    Layout,
    attend,
    grouped_product,
    select_blocks,
    using,
)
from baleen.model import ModelConfig

CONTEXT = 131_072
PAGE = 64
REPEATS = 20


class Case(NamedTuple):
    """One operation at one shape."""

    preset: str
    operation: str
    batch: int
    bytes_read: int
    run: Callable[[], Tensor]


def random_list(layout: Layout, batch: int, count: int) -> Entries:
    """Packed entries of random numbers."""
    data = layout.empty(1, count).cuda()
    values = torch.randn(count, layout.width, device="cuda")
    rows, places = torch.zeros(count, dtype=torch.int64), torch.arange(count)
    with using(Backend.TORCH):
        layout.put(data, rows.cuda(), places.cuda(), values)
    return Entries(data.expand(batch, -1, -1).contiguous(), count, layout)


def cases(preset: str, batch: int) -> Iterator[Case]:
    """What one layer of each kind does for one token of each sequence."""
    config = ModelConfig.preset(preset)
    heads, width, rope = config.num_attention_heads, config.head_dim, config.qk_rope_head_dim
    window = config.sliding_window
    q = torch.randn(batch, 1, heads, width, device="cuda").bfloat16()
    sinks, kv = torch.zeros(heads, device="cuda"), torch.randn(batch, 1, width, device="cuda")
    starts = torch.full((1,), CONTEXT - 1, device="cuda")
    ring = random_list(Layout(Kind.FP8, width, rope, window), batch, window)
    entry_bytes = ring.layout.entry_bytes
    far = random_list(Layout(Kind.FP8, width, rope, PAGE), batch, CONTEXT // 4)
    limits = torch.full((1, 1), CONTEXT // 4, device="cuda")
    scattered = torch.rand(batch, 1, CONTEXT // 4, device="cuda").topk(config.index_topk).indices
    picks = scattered.sort().values.int()

    def sparse() -> Tensor:
        return attend(q, sinks, ring, kv, starts, Blocks(far, limits, picks)).out_BTHc

    read = batch * (window + config.index_topk) * entry_bytes
    yield Case(preset, "attend, CSA", batch, read, sparse)
    dense_list = Entries(far.data, CONTEXT // 128, far.layout)
    dense_limits = torch.full((1, 1), CONTEXT // 128, device="cuda")

    def dense() -> Tensor:
        return attend(q, sinks, ring, kv, starts, Blocks(dense_list, dense_limits, None)).out_BTHc

    yield Case(preset, "attend, HCA", batch, batch * (window + CONTEXT // 128) * entry_bytes, dense)
    index_heads, index_width = config.index_n_heads, config.index_head_dim
    keys = random_list(Layout(Kind.FP4, index_width, 0, PAGE), batch, CONTEXT // 4)
    index_q = torch.randn(batch, 1, index_heads, index_width, device="cuda").bfloat16()
    weights = torch.randn(batch, 1, index_heads, device="cuda")

    def chosen() -> Tensor:
        return select_blocks(index_q, weights, keys, limits, config.index_topk)

    read = batch * CONTEXT // 4 * keys.layout.entry_bytes
    yield Case(preset, "indexer and top-k", batch, read, chosen)
    d, inner, experts = config.hidden_size, config.moe_intermediate_size, config.n_routed_experts
    codes = torch.randint(0, 256, (experts, inner, d // 2), device="cuda", dtype=torch.uint8)
    scales = torch.full((experts, inner, d // 32), 120, device="cuda", dtype=torch.uint8)
    generator = torch.Generator().manual_seed(0)
    taken = [torch.randperm(experts, generator=generator)[:6] for _ in range(batch)]
    sizes = torch.bincount(torch.cat(taken), minlength=experts).tolist()
    x = torch.randn(sum(sizes), d, device="cuda").bfloat16()

    def multiplied() -> Tensor:
        stored = codes.view(torch.int8), scales.view(torch.float8_e8m0fnu)
        return grouped_product(x, sizes, *stored)

    used = sum(size > 0 for size in sizes)
    read = used * (codes[0].numel() + scales[0].numel())
    yield Case(preset, "FP4 experts, w1", batch, read, multiplied)


def milliseconds(run: Callable[[], Tensor], flushed: Tensor) -> float:
    """The median of some runs, each with cold caches."""
    run()
    times = []
    for _ in range(REPEATS):
        flushed.zero_()
        begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        begin.record()
        run()
        end.record()
        torch.cuda.synchronize()
        times.append(begin.elapsed_time(end))
    return sorted(times)[len(times) // 2]


def copy_gb_per_s() -> float:
    """Read and written bytes of a large copy."""
    source = torch.empty(1 << 30, dtype=torch.uint8, device="cuda")
    target = torch.empty_like(source)
    flushed = torch.empty(1 << 20, dtype=torch.uint8, device="cuda")
    return 2 * source.nbytes / milliseconds(lambda: target.copy_(source), flushed) / 1e6


def error(case: Case) -> float:
    """Against the plain form: a share of the largest number, or of choices that differ."""
    fast = case.run()
    with using(Backend.TORCH):
        slow = case.run()
    if not fast.is_floating_point():
        shared = (fast.unsqueeze(-1) == slow.unsqueeze(-2)).any(-1)
        return 1 - shared.float().mean().item()
    return ((fast - slow).abs().max() / slow.abs().max()).item()


@torch.no_grad()
def measure(batches: list[int]) -> list[dict[str, object]]:
    copied = copy_gb_per_s()
    print(f"{torch.cuda.get_device_name()}: a copy moves {copied:.0f} GB/s", flush=True)
    flushed = torch.empty(1 << 28, dtype=torch.uint8, device="cuda")
    rows: list[dict[str, object]] = []
    for preset in ("v4-flash", "v4-pro"):
        for batch in batches:
            for case in cases(preset, batch):
                took = milliseconds(case.run, flushed)
                speed = case.bytes_read / took / 1e6
                rows.append(
                    {
                        "gpu": torch.cuda.get_device_name(),
                        "preset": preset,
                        "operation": case.operation,
                        "batch": batch,
                        "context": CONTEXT,
                        "us": round(took * 1000, 1),
                        "mb": round(case.bytes_read / 1e6, 2),
                        "gb_per_s": round(speed, 1),
                        "share_of_copy": round(speed / copied, 3),
                        "error": f"{error(case):.1e}" if batch == batches[0] else "",
                    }
                )
                print("  ".join(f"{k} {v}" for k, v in rows[-1].items()), flush=True)
            torch.cuda.empty_cache()
    return rows


POINTERS = {
    "*bf16": "q_BTHc x_RI ring_halves blocks_halves",
    "*fp32": "sinks_H kv_BTc out_BTHc weights_BTH scores_BTM out_RO",
    "*u8": "ring blocks keys codes scales",
    "*i64": "starts_B limits_BT tiles_L3",
    "*i32": "picks_BTK broken_BT",
    "fp32": "scale",
}


def compile_all() -> None:
    """Compiles every kernel at Flash's shapes for compute capability 9.0."""
    from triton import compile as build
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    from baleen.kernels.gpu import attend as attending
    from baleen.kernels.gpu import product as multiplying
    from baleen.kernels.gpu import select as selecting

    types = {name: kind for kind, names in POINTERS.items() for name in names.split()}
    shape = {"KIND": 2, "WIDTH": 512, "ROPE": 64, "WINDOW": 128, "PAGE": PAGE, "COLUMNS": 512}
    heads, keys = attending.HEADS, attending.KEYS
    entries = {**shape, "FAR": True, "PICKED": True, "EXACT": False, "HEADS": heads, "KEYS": keys}
    index = {"KIND": 3, "WIDTH": 128, "PAGE": PAGE, "EXACT": False, "HEADS": 64, "COLUMNS": 128}
    index |= {"QUERIES": selecting.QUERIES, "KEYS": selecting.KEYS}
    tile = {name: getattr(multiplying, name) for name in ("ROWS", "OUTPUTS", "INPUTS")}
    for kernel, constants, warps in (
        (attending._attend, entries, attending.WARPS),
        (selecting._score, index, 4),
        (selecting._choose, {"WALK": selecting.WALK}, 4),
        (multiplying._product, {**tile, "FP4": True, "BYTES": True, "EXACT": False}, 4),
        (multiplying._product, {**tile, "FP4": False, "BYTES": True, "EXACT": False}, 4),
    ):
        names = kernel.arg_names
        signature = {n: "constexpr" if n in constants else types.get(n, "i32") for n in names}
        values = {(names.index(name),): value for name, value in constants.items()}
        source = ASTSource(fn=kernel, signature=signature, constexprs=values)
        built = build(source, target=GPUTarget("cuda", 90, 32), options={"num_warps": warps})
        size, shared = len(built.asm["cubin"]), built.metadata.shared
        print(f"{kernel.__name__}: {size} bytes of machine code, {shared} of shared memory")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="batches 1 and 16 only")
    parser.add_argument("--compile", action="store_true", help="compile for an H100 and stop")
    options = parser.parse_args()
    if options.compile or not torch.cuda.is_available():
        if not options.compile:
            print("no GPU here: nothing is measured; compiling for an H100", file=sys.stderr)
        compile_all()
        return
    write_results("kernels_gpu", measure([1, 16] if options.quick else [1, 16, 128]))


if __name__ == "__main__":
    main()
