"""A training run's whole state in one file, so that a run that was killed goes on from it."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import nn

from baleen.rl.optimizer import HybridOptimizer


def save_snapshot(path: Path, model: nn.Module, optimizer: HybridOptimizer, step: int) -> None:
    """Writes weights, optimiser and the number of the next step; replaces the file atomically."""
    partial = path.with_name(path.name + ".partial")
    parts = [part.state_dict() for part in optimizer.parts]
    torch.save({"step": step, "model": model.state_dict(), "optimizer": parts}, partial)
    partial.replace(path)


def restore_snapshot(path: Path, model: nn.Module, optimizer: HybridOptimizer) -> int:
    """Loads a snapshot, if there is one; returns the step to go on with."""
    if not path.exists():
        return 0
    held = torch.load(path, weights_only=True)
    model.load_state_dict(held["model"])
    for part, state in zip(optimizer.parts, held["optimizer"], strict=True):
        part.load_state_dict(state)
    return int(held["step"])
