"""Which part of a model's layers a forward pass spends its time in."""

from __future__ import annotations

import ctypes
from collections.abc import Iterator
from contextlib import contextmanager

from baleen.model import Transformer
from baleen.model.decoder import PARTS


class PartClock:
    """Seconds by part of the compiled layers, of the thread that calls; `select` is the indexer."""

    def __init__(self) -> None:
        self.seconds = (ctypes.c_double * len(PARTS))()

    @contextmanager
    def watching(self, model: Transformer) -> Iterator[PartClock]:
        """Times the parts during the block."""
        model._decoder.seconds = self.seconds
        try:
            yield self
        finally:
            model._decoder.seconds = None

    def take(self, total_s: float) -> dict[str, float]:
        """The seconds so far, the rest of `total_s` as `other`; then begins anew."""
        taken = dict(zip(PARTS, self.seconds, strict=True))
        taken["other"] = total_s - sum(taken.values())
        ctypes.memset(self.seconds, 0, ctypes.sizeof(self.seconds))
        return taken
