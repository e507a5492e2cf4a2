"""UE8M0: a scale as one byte, the exponent of a power of two. Source: OCP MX specification 1.0.

Byte e means 2^(e - 127); 255 is NaN. Multiplying and dividing by such a scale is exact.
"""

from __future__ import annotations

import torch
from torch import Tensor

BIAS = 127
NAN = 255


def decode(scale: Tensor) -> Tensor:
    """fp32 values of a float8_e8m0fnu tensor; byte 0 is 2^-127, a subnormal, and stays one."""
    return scale.float()


def of_exponents(exponents: Tensor) -> Tensor:
    """float8_e8m0fnu scales 2^exponents; what lies outside -127..127 is clamped."""
    return (
        (exponents.to(torch.int16) + BIAS)
        .clamp(0, NAN - 1)
        .to(torch.uint8)
        .view(torch.float8_e8m0fnu)
    )


def at_least(values: Tensor) -> Tensor:
    """The smallest scales >= `values` (fp32, > 0): 2^ceil(log2(values)), without a logarithm.

    A logarithm rounds: of some powers of two it would name the next one.
    """
    mantissa, exponent = torch.frexp(values)
    return of_exponents(exponent - (mantissa == 0.5).to(exponent.dtype))
