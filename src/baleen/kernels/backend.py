"""Which form of the operations runs."""

from __future__ import annotations

import functools
import importlib.util
import os
from collections.abc import Iterator
from contextlib import contextmanager
from enum import StrEnum

import torch
from torch import Tensor

from baleen.errors import ConfigError


class Backend(StrEnum):
    """A way to compute the operations."""

    TORCH = "torch"
    """The plain reference; has gradients and runs everywhere."""
    NATIVE = "native"
    """Compiled for the processor that a call's tensors are on: Rust on the CPU, Triton on a GPU.
    Without gradients. What it cannot take runs in torch."""
    TRITON = "triton"
    """The GPU's form wherever the tensors are: on the CPU it needs Triton's interpreter, which
    proves that it is right and is slow. What has no such form runs in torch."""


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


def on_gpu(*tensors: Tensor | None) -> bool:
    """Whether the Triton form computes on these tensors, all of them on one device.

    Raises:
        ConfigError: it was asked for by name and cannot run.
    """
    backend = preferred()
    present = [tensor for tensor in tensors if tensor is not None]
    is_cuda = present[0].device.type == "cuda"
    if backend is Backend.TORCH or (backend is Backend.NATIVE and not is_cuda):
        return False
    grad = torch.is_grad_enabled()
    if any(x.dtype == torch.float64 or (grad and x.requires_grad) for x in present):
        return False
    if _has_triton() and (is_cuda or os.environ.get("TRITON_INTERPRET") == "1"):
        return True
    if backend is Backend.NATIVE:
        return False
    if not _has_triton():
        raise ConfigError("the backend triton is asked for and Triton is not installed")
    raise ConfigError(
        f"the backend triton is asked for and the tensors are on {present[0].device}",
        remedy="move them to a GPU, or set TRITON_INTERPRET=1 before the first use",
    )


@functools.cache
def _has_triton() -> bool:
    return importlib.util.find_spec("triton") is not None
