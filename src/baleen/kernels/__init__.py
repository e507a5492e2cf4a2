"""The few hot operations, one call each: a plain-torch reference and faster paths."""

from baleen.kernels.attend import Blocks, attend
from baleen.kernels.select import select_blocks

__all__ = ["Blocks", "attend", "select_blocks"]
