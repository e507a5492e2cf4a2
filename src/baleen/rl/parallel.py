"""Data parallelism on one machine: a process per core, gradients averaged after each backward pass.

Small models are bound by the launch of many small operations, so two processes of one thread each
train nearly twice as fast as one process of two threads. All ranks start from equal weights and
take equal steps, so they stay equal; the result depends on the seed and the number of workers only.
"""

from __future__ import annotations

import ctypes
import os
import signal
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import nn
from torch.multiprocessing.spawn import spawn as _start_all

Work = Callable[..., None]


def launch(work: Work, workers: int, *args: Any) -> None:
    """Runs `work(rank, *args)` in `workers` processes; a failure in one ends them all."""
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    if workers == 1:
        work(0, *args)
        return
    with tempfile.TemporaryDirectory(prefix="baleen-train-") as folder:
        rendezvous = f"file://{Path(folder) / 'rendezvous'}"
        _start_all(_member, args=(work, workers, rendezvous, args), nprocs=workers, join=True)


def _member(rank: int, work: Work, workers: int, rendezvous: str, args: tuple[Any, ...]) -> None:
    _die_with_parent()
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=rendezvous, rank=rank, world_size=workers)
    try:
        work(rank, *args)
    finally:
        dist.destroy_process_group()


def _die_with_parent() -> None:
    """A launcher that was killed cannot stop its workers, and they would train on for an hour."""
    pr_set_pdeathsig = 1
    ctypes.CDLL(None, use_errno=True).prctl(pr_set_pdeathsig, signal.SIGKILL)


def world_size() -> int:
    return dist.get_world_size() if dist.is_initialized() else 1


def average_gradients(model: nn.Module) -> None:
    """Replaces gradients by their mean over all ranks, in one exchange; absent ones are 0."""
    if not dist.is_initialized():
        return
    parameters = [p for p in model.parameters() if p.requires_grad]
    for parameter in parameters:
        if parameter.grad is None:
            parameter.grad = torch.zeros_like(parameter)
    flat = torch.cat([p.grad.flatten() for p in parameters if p.grad is not None])
    dist.all_reduce(flat)
    flat /= world_size()
    offset = 0
    for parameter in parameters:
        assert parameter.grad is not None
        parameter.grad.copy_(flat[offset : offset + parameter.numel()].view_as(parameter))
        offset += parameter.numel()


def total(values: torch.Tensor) -> torch.Tensor:
    """Sum over all ranks."""
    if dist.is_initialized():
        dist.all_reduce(values)
    return values
