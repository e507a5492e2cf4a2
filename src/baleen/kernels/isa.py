"""Which build of the compiled library runs: one for each set of a processor's instructions."""

from __future__ import annotations

import ctypes
import functools
import os
from collections.abc import Iterator
from contextlib import contextmanager
from enum import StrEnum
from pathlib import Path

from baleen.errors import ConfigError

FOLDER = Path(__file__).parent / "lib"


class Isa(StrEnum):
    """A set of instructions, the best first."""

    AVX512 = "avx512"
    """AVX-512 with products of bf16 pairs: Zen 4, Cooper Lake, Sapphire Rapids and later."""
    AVX2 = "avx2"
    """AVX2, FMA and F16C: nearly every x86-64 processor since 2013."""
    PLAIN = "plain"
    """What every processor of the architecture has."""


def path_of(isa: Isa) -> Path:
    return FOLDER / f"libbaleen_kernels_{isa}.so"


@functools.cache
def available() -> list[Isa]:
    """The forms that are built and that this processor can run, the best first."""
    if not path_of(Isa.PLAIN).exists():
        return []
    best = ctypes.CDLL(str(path_of(Isa.PLAIN))).baleen_instructions()
    able = list(reversed(Isa))[: best + 1]
    return [isa for isa in Isa if isa in able and path_of(isa).exists()]


_forced: list[Isa] = []


def current() -> Isa | None:
    """The innermost `using_isa`, else `BALEEN_KERNELS_ISA`, else the best; None if none is built.

    Raises:
        ConfigError: the variable names a form that cannot run here.
    """
    return _forced[-1] if _forced else _default()


@contextmanager
def using_isa(isa: Isa) -> Iterator[None]:
    """Runs one form for the duration of the block."""
    _forced.append(isa)
    try:
        yield
    finally:
        _forced.pop()


@functools.cache
def _default() -> Isa | None:
    able = available()
    name = os.environ.get("BALEEN_KERNELS_ISA")
    if name is None:
        return able[0] if able else None
    if name not in able:
        known = ", ".join(able) or "none"
        raise ConfigError(
            f"BALEEN_KERNELS_ISA = {name!r} is not among the forms that run here: {known}"
        )
    return Isa(name)
