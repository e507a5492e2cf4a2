"""The compiled library and how tensors are handed to it.

Each operation takes one structure of pointers and sizes, declared here field by field as in the
Rust source; a number that both sides carry is checked when the library is loaded.
"""

from __future__ import annotations

import ctypes
import functools

import torch
from torch import Tensor

from baleen.errors import BaleenError
from baleen.kernels.backend import Backend, preferred
from baleen.kernels.isa import Isa, current, path_of
from baleen.kernels.kind import Kind

INTERFACE = 9
KINDS = {Kind.FP32: 0, Kind.BF16: 1, Kind.FP8: 2, Kind.FP4: 3}
"""Numbers of the forms of cached entries."""
VECTOR = 8
"""Widths are multiples of so many numbers, else torch computes."""


def _fields(
    pointers: str, sizes: str, numbers: str = "", switches: str = ""
) -> list[tuple[str, type]]:
    return [
        *((name, ctypes.c_void_p) for name in pointers.split()),
        *((name, ctypes.c_size_t) for name in sizes.split()),
        *((name, ctypes.c_float) for name in numbers.split()),
        *((name, ctypes.c_bool) for name in switches.split()),
    ]


class AttendArgs(ctypes.Structure):
    _fields_ = _fields(
        "q sinks ring kv starts blocks limits picks out",
        "batch tokens heads width window topk kind rope page starts_stride limits_stride"
        " ring_stride blocks_stride threads kv_kind",
        switches="narrow",
    )


class SelectArgs(ctypes.Structure):
    _fields_ = _fields(
        "q weights keys limits picks",
        "batch tokens heads width topk kind page limits_stride keys_stride threads",
        switches="narrow",
    )


class MixArgs(ctypes.Structure):
    _fields_ = _fields(
        "x mixed function base scale norm input post comb",
        "tokens streams width iterations threads",
        "hc_eps norm_eps",
    )


class ExpandArgs(ctypes.Structure):
    _fields_ = _fields("y x post comb out", "tokens streams width threads")


class NormRotateArgs(ctypes.Structure):
    _fields_ = _fields(
        "x weight phases out", "rows width rope heads tokens threads", "eps direction"
    )


class GateArgs(ctypes.Structure):
    _fields_ = _fields("gate up weights out", "rows width threads", "limit")


class PackArgs(ctypes.Structure):
    _fields_ = _fields("values rows places data", "count width rope page kind stride")


class Matrix(ctypes.Structure):
    """A weight matrix as stored, see `weights`; null where a layer has none."""

    _fields_ = _fields("data scales", "kind first")

    @classmethod
    def of(cls, data: Tensor, scales: Tensor | None = None) -> Matrix:
        """A contiguous matrix, or a stack of them."""
        kind = MATRIX_KINDS[data.dtype, None if scales is None else scales.dtype]
        return cls(address(data), address(scales), kind, 0)


MATRIX_KINDS = {
    (torch.float32, None): 0,
    (torch.bfloat16, None): 1,
    (torch.float8_e4m3fn, torch.float8_e8m0fnu): 2,
    (torch.int8, torch.float8_e8m0fnu): 3,
    (torch.float8_e4m3fn, torch.float32): 4,
}
"""Numbers of the forms of weights, by the types of data and scales."""


class ProductArgs(ctypes.Structure):
    _fields_ = (("matrix", Matrix), *_fields("x out", "rows outputs inputs threads"))


class DecodeArgs(ctypes.Structure):
    _fields_ = (("matrix", Matrix), *_fields("out", "outputs inputs threads"))


class SiteArgs(ctypes.Structure):
    _fields_ = _fields("function base scale norm", "")


class CompressorArgs(ctypes.Structure):
    _fields_ = (
        ("wkv", Matrix),
        ("wgate", Matrix),
        *_fields("ape norm pending entries", "ratio width overlaps kind page"),
    )


MATRICES = (
    *("wq_a", "wq_b", "wkv", "wo_a", "wo_b", "index_wq_b", "index_weights"),
    *("gate", "w1", "w3", "w2", "shared_w1", "shared_w3", "shared_w2"),
)


class LayerArgs(ctypes.Structure):
    _fields_ = (
        ("attention_site", SiteArgs),
        ("feed_site", SiteArgs),
        *((name, Matrix) for name in MATRICES),
        ("compressor", CompressorArgs),
        ("indexer", CompressorArgs),
        *_fields("q_norm kv_norm sinks gate_bias table frequencies ring", ""),
    )


class JoinArgs(ctypes.Structure):
    _fields_ = (("e_proj", Matrix), ("h_proj", Matrix), *_fields("e_norm h_norm streams", ""))


class StepArgs(ctypes.Structure):
    _fields_ = (
        ("layers", ctypes.POINTER(LayerArgs)),
        ("embedding", Matrix),
        ("join", JoinArgs),
        *_fields(
            "out tokens seconds",
            "count position num_layers width streams iterations heads head_width rope q_rank"
            " groups group_rank window index_heads index_width topk experts experts_per_token"
            " expert_width shared_width kind threads",
            "hc_eps norm_eps limit scaling",
            "narrow",
        ),
    )


OPERATIONS: dict[str, type[ctypes.Structure]] = {
    "attend": AttendArgs,
    "select": SelectArgs,
    "mix": MixArgs,
    "expand": ExpandArgs,
    "read_out": MixArgs,
    "norm_rotate": NormRotateArgs,
    "gate": GateArgs,
    "pack": PackArgs,
    "product": ProductArgs,
    "decode": DecodeArgs,
    "step": StepArgs,
}
CHECKED = {"select", "step"}
"""Operations that answer whether all scores were numbers."""


def library() -> ctypes.CDLL | None:
    """The library, or None where it was not built.

    Raises:
        BaleenError: the file is there and belongs to another version.
        ConfigError: `BALEEN_KERNELS_ISA` names a form that is not built or that cannot run here.
    """
    form = current()
    return None if form is None else _loaded(form)


@functools.cache
def _loaded(form: Isa) -> ctypes.CDLL:
    loaded = ctypes.CDLL(str(path_of(form)))
    if loaded.baleen_interface() != INTERFACE:
        raise BaleenError(
            f"{path_of(form)} has interface {loaded.baleen_interface()}, "
            f"this version needs {INTERFACE}",
            remedy="build it again with `python native/hatch_build.py`",
        )
    for name, arguments in OPERATIONS.items():
        function = getattr(loaded, f"baleen_{name}")
        function.argtypes = [ctypes.POINTER(arguments)]
        function.restype = ctypes.c_bool if name in CHECKED else None
    return loaded


def serves(*tensors: Tensor | None, width: int) -> ctypes.CDLL | None:
    """The library if it can compute on these tensors: plain CPU fp32 without gradients."""
    if width % VECTOR or preferred() is not Backend.NATIVE:
        return None
    grad = torch.is_grad_enabled()
    for tensor in tensors:
        if tensor is not None and (
            tensor.dtype != torch.float32
            or tensor.device.type != "cpu"
            or (grad and tensor.requires_grad)
        ):
            return None
    return library()


def address(tensor: Tensor | None) -> int | None:
    """Where a contiguous tensor's numbers begin; None for None."""
    return None if tensor is None else tensor.data_ptr()
