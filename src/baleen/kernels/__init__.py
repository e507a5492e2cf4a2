"""The few hot operations, one call each: a plain-torch reference and faster paths."""

from baleen.kernels.attend import Blocks, attend
from baleen.kernels.backend import Backend, using
from baleen.kernels.entries import Entries, Layout
from baleen.kernels.kind import Kind
from baleen.kernels.product import grouped_product, product
from baleen.kernels.rows import norm_rotate, rotate_back, swiglu
from baleen.kernels.select import select_blocks

__all__ = [
    "Backend",
    "Blocks",
    "Entries",
    "Kind",
    "Layout",
    "attend",
    "grouped_product",
    "norm_rotate",
    "product",
    "rotate_back",
    "select_blocks",
    "swiglu",
    "using",
]
