"""Forms of a cached vector."""

from __future__ import annotations

from enum import StrEnum


class Kind(StrEnum):
    """The form of one entry."""

    FP32 = "fp32"
    BF16 = "bf16"
    FP8 = "fp8"
    """E4M3 under a scale per 64 numbers, but for the rotary part, which stays bf16."""
    FP4 = "fp4"
    """E2M1 after a Hadamard rotation, under a scale per 32 numbers."""
