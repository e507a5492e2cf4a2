"""Documents laid end to end in one row, of which none sees another.

Everything that works on tokens one by one (embedding, experts, streams, head) runs over the whole
row at once. Attention takes the row apart: documents become rows of their own, those of similar
length together, and each starts at position 0 with nothing before it. So positions, windows and
compression are per document by construction: a block never spans two documents, and a tail shorter
than a block makes none.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from baleen.cache import LayerShape, Span, State
from baleen.errors import UsageError
from baleen.model.attention import Attention
from baleen.model.config import LayerKind
from baleen.model.trace import Trace

LEAST_FILL = 0.8
"""Documents share a batch of rows if each fills at least this part of the longest."""


class Group(NamedTuple):
    """Documents of similar length, as the rows of one batch."""

    source_DT: Tensor
    """int64: where in the packed row each token comes from; behind a document, its last token."""
    real_DT: Tensor
    span: Span


class Packing:
    """Where the documents of a packed row [1, L] begin and end."""

    def __init__(self, lengths: Sequence[int]) -> None:
        if not lengths or min(lengths) < 1:
            raise UsageError(f"documents of lengths {list(lengths)}: each needs at least one token")
        self.lengths = list(lengths)
        lengths_D = torch.tensor(self.lengths)
        ends_D = lengths_D.cumsum(0)
        self.documents_L = torch.arange(len(lengths)).repeat_interleave(lengths_D)
        """The number of each token's document."""
        self.is_last_L = torch.zeros(int(ends_D[-1]), dtype=torch.bool)
        self.is_last_L[ends_D - 1] = True
        self.groups = [_group(ends_D - lengths_D, lengths_D, part) for part in _similar(lengths)]
        order_L = torch.cat([group.source_DT[group.real_DT] for group in self.groups])
        self._back_L = order_L.argsort()

    @property
    def num_tokens(self) -> int:
        return len(self.documents_L)

    def attend(self, attention: Attention, x_1Ld: Tensor, trace: Trace | None) -> Tensor:
        """A layer's attention within each document, [1, L, d]."""
        outs = []
        for group in self.groups:
            state = _empty_state(attention, len(group.source_DT))
            if trace is not None:
                trace.learned_BT = group.real_DT
            out_DTd = attention(x_1Ld[0, group.source_DT], group.span, state.layers[0], trace)
            outs.append(out_DTd[group.real_DT])
        return torch.cat(outs)[self._back_L].unsqueeze(0)


def pack(documents: Sequence[Sequence[int]]) -> tuple[Tensor, Packing]:
    """Documents' tokens as one row [1, L], and where they lie in it."""
    ids = torch.tensor([[token for document in documents for token in document]])
    return ids, Packing([len(document) for document in documents])


def _similar(lengths: Sequence[int]) -> list[list[int]]:
    """Numbers of documents, in groups that waste little on padding."""
    groups: list[list[int]] = []
    for number in sorted(range(len(lengths)), key=lambda number: (-lengths[number], number)):
        if groups and lengths[number] >= LEAST_FILL * lengths[groups[-1][0]]:
            groups[-1].append(number)
        else:
            groups.append([number])
    return groups


def _group(starts_D: Tensor, lengths_D: Tensor, numbers: list[int]) -> Group:
    starts, lengths = starts_D[numbers].unsqueeze(1), lengths_D[numbers].unsqueeze(1)
    steps_T = torch.arange(int(lengths.max()))
    source_DT = starts + torch.minimum(steps_T, lengths - 1)
    # pads count as tokens: they come last, so that no real query sees them
    span = Span.of(torch.zeros(len(numbers), dtype=torch.int64), len(steps_T), None)
    return Group(source_DT, steps_T < lengths, span)


def _empty_state(attention: Attention, rows: int) -> State:
    """What lies before the first token of every row: nothing."""
    is_csa, indexer = attention.kind is LayerKind.CSA, attention.indexer
    index_width = 0 if indexer is None else indexer.width
    shape = LayerShape(attention.width, attention.ratio, is_csa, index_width)
    return State([shape], attention.config.sliding_window, rows)
