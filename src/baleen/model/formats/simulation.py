"""Quantisation as the released kernels do it, simulated in the model's own arithmetic.

Where they compute from FP8 or FP4, numbers are rounded to what those formats can hold, and
computing goes on as before: latents of window and blocks (all but the rotary part, FP8), the
indexer's queries and keys (Hadamard transform, then FP4), inputs of matrices that are stored in FP8
or FP4 (FP8). Gradients pass straight through the rounding, so a model can learn to live with it.

Source: DeepSeek-V4 report sections 4 and 5.2; points and constants of the released inference code.
"""

from __future__ import annotations

import functools
import re
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from baleen.errors import ConfigError
from baleen.model.formats import fp4, fp8, ue8m0

if TYPE_CHECKING:
    from baleen.model.transformer import Transformer

LATENT_BLOCK = 64
INPUT_BLOCK = 128
SMALLEST_AMAX = 1e-4
"""The kernels take a block's largest magnitude for at least this."""
QUANTISED_INPUT = re.compile(
    r"(\.attn\.(wq_a|wq_b|wkv|wo_b|indexer\.wq_b)|\.shared_experts\.w[123]|[eh]_proj)$"
)
"""Linear modules whose input is rounded; wo_a is missing because the kernels decode it to BF16."""


class _Straight(torch.autograd.Function):
    """Gives the rounded values and, to the gradient, the illusion that nothing was rounded."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, rounded: Tensor) -> Tensor:
        return rounded.view_as(rounded)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        return grad, None


def _straight(x: Tensor, rounded: Tensor) -> Tensor:
    out: Tensor = _Straight.apply(x, rounded.to(x.dtype))  # type: ignore[no-untyped-call]
    return out


def _blocked(x: Tensor, block: int) -> Tensor:
    """fp32 [..., n, block], filled up with zeros."""
    missing = -x.shape[-1] % block
    blocks: Tensor = nn.functional.pad(x.float(), (0, missing)).unflatten(-1, (-1, block))
    return blocks


def round_fp8(x: Tensor, block: int = INPUT_BLOCK) -> Tensor:
    """To E4M3 with a power-of-two scale per `block` numbers of the last dimension, and back."""
    with torch.no_grad():
        blocks = _blocked(x, block)
        amax = blocks.abs().amax(-1, keepdim=True).clamp(min=SMALLEST_AMAX)
        scales = ue8m0.decode(ue8m0.at_least(amax / fp8.MAX))
        codes = (blocks / scales).clamp(-fp8.MAX, fp8.MAX).to(torch.float8_e4m3fn)
        rounded = (codes.float() * scales).flatten(-2)[..., : x.shape[-1]]
    return _straight(x, rounded)


def round_fp4(x: Tensor) -> Tensor:
    """To E2M1 with a power-of-two scale per 32 numbers of the last dimension, and back."""
    with torch.no_grad():
        rows = _blocked(x, fp4.BLOCK).flatten(-2)
        rounded = fp4.decode(*fp4.encode(rows.flatten(0, -2))).view(rows.shape)
    return _straight(x, rounded[..., : x.shape[-1]])


@functools.cache
def hadamard(width: int) -> Tensor:
    """Sylvester's matrix / sqrt(width): H[i, j] = (-1)^popcount(i & j); symmetric, orthogonal.

    Raises:
        ConfigError: the width is no power of two.
    """
    if width & (width - 1):
        raise ConfigError(f"index_head_dim = {width}: simulated FP4 needs a power of two")
    matrix = torch.ones(1, 1)
    while len(matrix) < width:
        matrix = torch.cat(
            [torch.cat([matrix, matrix], dim=1), torch.cat([matrix, -matrix], dim=1)]
        )
    return matrix.div(width**0.5)


def round_index(x: Tensor) -> Tensor:
    """The indexer's queries and keys: spread over all dimensions, then FP4.

    The transform on both sides of a dot product leaves it alone; it evens out magnitudes.
    """
    return round_fp4(x.float() @ hadamard(x.shape[-1])).to(x.dtype)


def round_latent(x: Tensor, rope_dim: int) -> Tensor:
    """Keys and values: all but the rotary part, in FP8 blocks of 64."""
    nope, rope = x[..., :-rope_dim], x[..., -rope_dim:]
    return torch.cat([round_fp8(nope, LATENT_BLOCK), rope], dim=-1)


def simulate(model: Transformer, on: bool = True) -> None:
    """Switches the simulation of a whole model, its draft block included.

    Raises:
        ConfigError: the indexer's width is no power of two.
    """
    if model.quant_sim == on:
        return
    from baleen.model.attention import Attention
    from baleen.model.formats.packed import StoredExperts
    from baleen.model.moe import Experts

    rope_dim = model.config.qk_rope_head_dim
    latent = functools.partial(round_latent, rope_dim=rope_dim) if on else None
    for module in model.modules():
        if not isinstance(module, Attention):
            continue
        module.quantize = latent
        if module.compressor is not None:
            module.compressor.quantize = latent
        if module.indexer is not None:
            hadamard(module.indexer.width)
            index = round_index if on else None
            module.indexer.quantize = module.indexer.compressor.quantize = index
    for name, module in model.named_modules():
        if isinstance(module, Experts | StoredExperts):
            module.quantize = round_fp8 if on else None
            _switch_input(module, on)
        elif QUANTISED_INPUT.search(name):
            _switch_input(module, on)
    model.quant_sim = on


def _switch_input(module: nn.Module, on: bool) -> None:
    if on:
        module.register_forward_pre_hook(_round_input)
        return
    hooks = module._forward_pre_hooks
    for key in [key for key, hook in hooks.items() if hook is _round_input]:
        del hooks[key]


def _round_input(module: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...]:
    return (round_fp8(args[0]), *args[1:])
