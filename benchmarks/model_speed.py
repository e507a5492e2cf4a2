"""Prefill and decode beside transformers and llama.cpp, on the same weights, one thread each.

    python benchmarks/model_speed.py [--depths 1024 8192 32768] [--without llama.cpp]
    python benchmarks/model_speed.py --depths 16384 --without llama.cpp    # 16K tokens from nothing
    python benchmarks/model_speed.py --setup small-index --depths 16384

Batch 1. "wide-index" is bf16 with experts in FP4 in the file. llama.cpp computes with them (as
MXFP4), and so do we; "baleen decoded" and transformers load them as numbers. "small-index" is fp32
throughout, which llama.cpp does not take. At each depth: 512 more tokens, then 128 single ones
(median); processor time too, which neighbours on the machine disturb less. transformers prefills
in its faster way, chunks of 512. Each program runs in a process of
its own, for its peak memory; llama.cpp is built when it is not there
(`benchmarks/peers/llama_cpp.py`, about ten minutes). Prints, and writes
`benchmarks/results/model_speed.csv` or `model_speed_small_index.csv`.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import multiprocessing
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

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
    qk_rope_head_dim=64,
    q_lora_rank=64,
    o_groups=2,
    o_lora_rank=64,
    sliding_window=128,
    compress_ratios=(0, 0, 4, 128, 4, 128),
    index_n_heads=4,
    index_head_dim=128,
    index_topk=64,
    n_routed_experts=8,
    num_experts_per_tok=2,
    moe_intermediate_size=256,
    num_hash_layers=2,
    num_nextn_predict_layers=0,
    expert_dtype="fp4",
)


class Setup(NamedTuple):
    """A model, what it computes in, and who can run it."""

    config: ModelConfig
    dtype: str
    experts: Format
    programs: list[str]


SETUPS = {
    "wide-index": Setup(
        CONFIG, "bf16", Format.FP4, ["baleen", "baleen decoded", "transformers", "llama.cpp"]
    ),
    "small-index": Setup(
        dataclasses.replace(
            CONFIG,
            qk_rope_head_dim=32,
            index_n_heads=8,
            index_head_dim=32,
            moe_intermediate_size=128,
            expert_dtype=None,
        ),
        "fp32",
        Format.FP32,
        ["baleen decoded", "transformers"],
    ),
}
CHUNK = 512
DECODE_STEPS = 128
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}

Feed = Callable[[torch.Tensor], object]
Row = dict[str, float | int | str]


def save(folder: Path, setup: Setup = SETUPS["wide-index"]) -> None:
    """The model as a folder, its experts in a format of their own."""
    planned = []
    rest = Format.BF16 if setup.dtype == "bf16" else Format.FP32
    for name, tensor in named_tensors(initialize(Transformer(setup.config), 0)):
        stored = Stored(tensor.detach(), None)
        layout = setup.experts if EXPERT.search(name) else rest
        planned += plan_tensor(name, lambda stored=stored: stored, stored, layout)
    folder.mkdir()
    write_folder(folder, planned)
    (folder / "config.json").write_text(config_text(setup.config, None, setup.experts))


def feed_ours(folder: Path, dtype: torch.dtype, weights: str = "packed") -> Feed:
    model = Transformer.from_pretrained(folder, dtype=dtype, weights=weights).eval()
    state = model.new_state(kv_dtype="bf16" if dtype == torch.bfloat16 else "fp32")
    return lambda ids: model(ids, state, logits_to_keep=1)


def feed_decoded(folder: Path, dtype: torch.dtype) -> Feed:
    return feed_ours(folder, dtype, "decoded")


def feed_transformers(folder: Path, dtype: torch.dtype) -> Feed:
    sys.path.insert(0, str(Path(__file__).parent.parent / "tests" / "model"))
    from test_parity import reference

    peer = reference(Transformer.from_pretrained(folder, dtype=torch.float32)).to(dtype)
    cache = None

    def feed(ids: torch.Tensor) -> object:
        nonlocal cache
        for chunk in ids.split(CHUNK, dim=1):
            out = peer(input_ids=chunk, past_key_values=cache, use_cache=True, logits_to_keep=1)
            cache = out.past_key_values
        return out.logits

    return feed


FEEDS = {"baleen": feed_ours, "baleen decoded": feed_decoded, "transformers": feed_transformers}


@torch.no_grad()
def measure(program: str, folder: Path, dtype: str, depths: list[int]) -> list[Row]:
    """Tokens per second of one program at each depth, in a fresh process."""
    torch.set_num_threads(1)
    feed = FEEDS[program](folder, DTYPES[dtype])
    rows: list[Row] = []
    held, spent_s, began_s = 0, 0.0, time.process_time()
    for depth in sorted(depths):
        spent_s += _seconds(feed, _ids(depth - held))
        cpu_s = time.process_time() - began_s
        chunk_s = _seconds(feed, _ids(CHUNK))
        steps = [_seconds(feed, _ids(1)) for _ in range(DECODE_STEPS)]
        held = depth + CHUNK + DECODE_STEPS
        rows.append(
            {
                "program": program,
                "depth": depth,
                "prefill_to_depth": round(depth / spent_s),
                "cpu_s_to_depth": round(cpu_s, 2),
                "prefill_512": round(CHUNK / chunk_s),
                "decode": round(1 / statistics.median(steps), 1),
                "peak_mib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024,
            }
        )
        spent_s += chunk_s + sum(steps)
        print(json.dumps(rows[-1]), flush=True)
    return rows


def _ids(count: int) -> torch.Tensor:
    return torch.randint(0, CONFIG.vocab_size, (1, count))


def _seconds(feed: Feed, ids: torch.Tensor) -> float:
    started = time.perf_counter()
    feed(ids)
    return time.perf_counter() - started


def measure_llama(folder: Path, depths: list[int]) -> list[Row]:
    """llama-bench at each depth, on the same folder converted."""
    peer, target = llama_cpp.build(), folder / "model.gguf"
    program = Path(__file__).parent / "peers" / "llama_convert.py"
    convert = [sys.executable, str(program), str(peer.source), str(folder), str(target)]
    subprocess.run([*convert, str(CONFIG.vocab_size)], check=True, stdout=sys.stderr)
    rows: list[Row] = []
    for depth in sorted(depths):
        command = [str(peer.bench), "-m", str(target), "-t", "1", "-r", "1", "-o", "json"]
        command += ["-p", str(CHUNK), "-n", str(DECODE_STEPS), "-d", str(depth)]
        run = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)
        assert run.stdout is not None, "it is piped"
        told = run.stdout.read()
        _, status, usage = os.wait4(run.pid, 0)  # the peak of this child alone
        if status:
            raise SystemExit(f"{' '.join(command)} failed with status {status}")
        found = {bool(test["n_gen"]): test["avg_ts"] for test in json.loads(told)}
        rows.append(
            {
                "program": "llama.cpp",
                "depth": depth,
                "prefill_to_depth": "",
                "cpu_s_to_depth": "",
                "prefill_512": round(found[False]),
                "decode": round(found[True], 1),
                "peak_mib": usage.ru_maxrss // 1024,
            }
        )
        print(json.dumps(rows[-1]), flush=True)
    return rows


def ratios(rows: list[Row]) -> list[str]:
    """How many times the peers' speed ours is, a line per depth and peer."""
    by_depth = {(row["program"], row["depth"]): row for row in rows}
    lines = []
    for (program, depth), peer in by_depth.items():
        ours = by_depth.get(("baleen", depth)) or by_depth.get(("baleen decoded", depth))
        if ours is not None and not str(program).startswith("baleen"):
            told = [
                f"{what} {float(ours[what]) / float(peer[what]):.1f} times"
                for what in ("prefill_to_depth", "prefill_512", "decode")
                if peer[what]
            ]
            if peer["cpu_s_to_depth"]:
                times = float(peer["cpu_s_to_depth"]) / float(ours["cpu_s_to_depth"])
                told.append(f"processor time to depth 1/{times:.1f}")
            memory = f"memory {ours['peak_mib']} and {peer['peak_mib']} MiB"
            lines.append(f"{program} at {depth}: {', '.join([*told, memory])}")
    return lines


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--setup", choices=SETUPS, default="wide-index")
    parser.add_argument("--depths", type=int, nargs="+", default=[1024, 8192, 32768])
    parser.add_argument("--without", nargs="*", default=[], help="programs to leave out")
    options = parser.parse_args()
    setup = SETUPS[options.setup]
    spawn = multiprocessing.get_context("spawn")
    rows: list[Row] = []
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch) / "model"
        save(folder, setup)
        for program in (name for name in setup.programs if name not in options.without):
            if program == "llama.cpp":
                rows += measure_llama(folder, options.depths)
                continue
            with spawn.Pool(1) as pool:
                rows += pool.apply(measure, (program, folder, setup.dtype, options.depths))
    for row in rows:
        row["dtype"] = setup.dtype
    print(*ratios(rows), sep="\n")
    name = "model_speed" if options.setup == "wide-index" else "model_speed_small_index"
    write_results(name, rows)


if __name__ == "__main__":
    main()
