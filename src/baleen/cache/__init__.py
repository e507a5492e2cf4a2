"""Where keys and values live: per-sequence state of a hybrid-compressed model."""

from baleen.cache.blocks import DisjointState, OverlapState
from baleen.cache.entries import EntryList
from baleen.cache.slots import LatentRing, RunningSoftmax, TokenRing
from baleen.cache.span import Span
from baleen.cache.state import LayerShape, LayerState, Mark, State

__all__ = [
    "DisjointState",
    "EntryList",
    "LatentRing",
    "LayerShape",
    "LayerState",
    "Mark",
    "OverlapState",
    "RunningSoftmax",
    "Span",
    "State",
    "TokenRing",
]
