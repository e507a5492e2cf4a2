"""Which part of a model a forward pass spends its time in."""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import baleen.model.attention as attention
import baleen.model.transformer as transformer
from baleen.model import Transformer
from baleen.model.compressor import Compressor
from baleen.model.hyper_connections import HyperConnection
from baleen.model.indexer import Indexer
from baleen.model.moe import MoE

PARTS = {Compressor: "compress", MoE: "experts", HyperConnection: "streams"}


class PartClock:
    """Seconds by part; `select` is the indexer's scan."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = defaultdict(float)

    @contextmanager
    def watching(self, model: Transformer) -> Iterator[PartClock]:
        """Times the parts during the block; a single token then takes the slow way."""
        plain = attention.attend, transformer.expand
        attention.attend = self._timed("attend", attention.attend)
        transformer.expand = self._timed("streams", transformer.expand)
        changed = []
        for module in model.modules():
            if isinstance(module, Indexer):
                module.select = self._timed("select", module.select)
                changed.append((module, "select"))
            part = {Compressor: "compress", MoE: "experts", HyperConnection: "streams"}.get(
                type(module)
            )
            if part is not None:
                module.forward = self._timed(part, module.forward)
                changed.append((module, "forward"))
        try:
            yield self
        finally:
            attention.attend, transformer.expand = plain
            for module, name in changed:
                delattr(module, name)

    def take(self, total_s: float) -> dict[str, float]:
        """The seconds so far, the rest of `total_s` as `other`; then begins anew."""
        taken = {**self.seconds, "other": total_s - sum(self.seconds.values())}
        self.seconds.clear()
        return taken

    def _timed(self, part: str, function: Callable[..., Any]) -> Callable[..., Any]:
        def timed(*args: Any, **kwargs: Any) -> Any:
            started = time.perf_counter()
            result = function(*args, **kwargs)
            self.seconds[part] += time.perf_counter() - started
            return result

        return timed
