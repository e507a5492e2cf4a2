"""Parts of the attention switched off, to see whether a trained model uses them."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from enum import StrEnum

import torch
from torch import Tensor

from baleen.kernels import Entries
from baleen.kernels.select import best_blocks
from baleen.model import LayerKind, Transformer
from baleen.model.attention import Attention
from baleen.model.indexer import Indexer


class Part(StrEnum):
    """What can be switched off."""

    CSA = "csa"
    """CSA layers see their window only."""
    HCA = "hca"
    """HCA layers see their window only."""
    INDEXER = "indexer"
    """CSA layers attend as many blocks as before, but drawn at random."""


@contextmanager
def without(model: Transformer, part: Part) -> Iterator[None]:
    """Switches a part off for the duration of the block."""
    layers = [module for module in model.modules() if isinstance(module, Attention)]
    try:
        for layer in layers:
            if part is Part.INDEXER and layer.indexer is not None:
                layer.indexer.select = _random_choice(layer.indexer)  # type: ignore[method-assign]
            elif (part, layer.kind) in ((Part.CSA, LayerKind.CSA), (Part.HCA, LayerKind.HCA)):
                layer.sees_blocks = False
        yield
    finally:
        for layer in layers:
            layer.sees_blocks = True
            if layer.indexer is not None:
                layer.indexer.__dict__.pop("select", None)


def _random_choice(indexer: Indexer):  # type: ignore[no-untyped-def]
    """A stand-in for `Indexer.select` that prefers blocks at random, anew at every call."""
    generator = torch.Generator().manual_seed(0)

    def select(q_BTHc: Tensor, weights_BTH: Tensor, keys: Entries, limits_BT: Tensor) -> Tensor:
        scores = torch.rand(*q_BTHc.shape[:2], keys.length, generator=generator)
        return best_blocks(scores, limits_BT, indexer.topk)

    return select
