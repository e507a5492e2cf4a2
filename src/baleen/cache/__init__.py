"""Where keys and values live: per-sequence state of a hybrid-compressed model."""

from baleen.cache.entries import EntryList
from baleen.cache.span import Span
from baleen.cache.state import CompressorState, LayerShape, LayerState, Mark, State

__all__ = ["CompressorState", "EntryList", "LayerShape", "LayerState", "Mark", "Span", "State"]
