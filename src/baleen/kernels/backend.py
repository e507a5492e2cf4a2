"""Which form of the operations runs."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from enum import StrEnum

from baleen.errors import ConfigError


class Backend(StrEnum):
    """A way to compute the operations."""

    TORCH = "torch"
    """The plain reference; has gradients and runs everywhere."""
    NATIVE = "native"
    """Compiled for the CPU; without gradients, fp32 queries only. What it cannot take runs in
    torch."""


_forced: list[Backend] = []


def preferred() -> Backend:
    """The innermost `using`, else `BALEEN_KERNELS`, else native.

    Raises:
        ConfigError: the variable names no backend.
    """
    if _forced:
        return _forced[-1]
    name = os.environ.get("BALEEN_KERNELS", Backend.NATIVE.value)
    try:
        return Backend(name)
    except ValueError:
        known = ", ".join(Backend)
        raise ConfigError(f"BALEEN_KERNELS = {name!r} is not one of {known}") from None


@contextmanager
def using(backend: Backend) -> Iterator[None]:
    """Prefers a backend for the duration of the block."""
    _forced.append(backend)
    try:
        yield
    finally:
        _forced.pop()
