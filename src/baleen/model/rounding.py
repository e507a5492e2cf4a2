"""Training for a compact format: passes run on the weights that a file would hold.

Quantisation-aware training keeps full-precision masters. For a pass they are replaced by their
rounded selves, whose gradients then belong to the masters as they are ("straight-through"): the
step that rounding makes is taken for the identity. Since the pass computes with the very values
that `save_pretrained` writes, what is trained is what will be loaded.

Source: DeepSeek-V4 report section 5.2.1 (FP4 experts); activations are not rounded here.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch

from baleen.model.checkpoint import named_tensors
from baleen.model.formats.plan import encode
from baleen.model.formats.stored import Format, Kind, kind_in, plain_dtype
from baleen.model.transformer import Transformer


@contextmanager
def rounded_weights(model: Transformer, format: str = "fp4") -> Iterator[None]:
    """Inside, every parameter has the value it would have in a file of that format (fp32: its own).

    Gradients computed inside stay on the parameters; take the optimiser's step outside, where the
    masters are back. Costs a second copy of the weights while it lasts.

    Raises:
        UsageError: no such format.
    """
    wanted = Format.of(format)
    if wanted is Format.FP32:  # masters are that already
        yield
        return
    parameters = [p for p in model.parameters() if p.is_floating_point()]
    masters = [parameter.data for parameter in parameters]
    for parameter in parameters:
        parameter.data = parameter.data.clone()
    try:
        _round(model, wanted)
        yield
    finally:
        for parameter, master in zip(parameters, masters, strict=True):
            parameter.data = master


@torch.no_grad()
def _round(model: Transformer, format: Format) -> None:
    """Rounds all weights in place, each as a file holds it."""
    for name, tensor in named_tensors(model):
        if not tensor.is_floating_point():
            continue
        kind = kind_in(name, format)
        if kind is Kind.PLAIN:
            tensor.copy_(tensor.to(plain_dtype(name, format, tensor.dtype)))
        else:
            tensor.copy_(encode(tensor, kind).values(tensor.dtype))
