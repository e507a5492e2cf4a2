"""Many conversations on one model. Needs the extra ``model``."""

from baleen.engine.batch import Batch, Completion
from baleen.engine.engine import Engine
from baleen.engine.sampling import SampledToken, Sampling
from baleen.engine.session import Session
from baleen.engine.speculation import DraftingSession

__all__ = [
    "Batch",
    "Completion",
    "DraftingSession",
    "Engine",
    "SampledToken",
    "Sampling",
    "Session",
]
