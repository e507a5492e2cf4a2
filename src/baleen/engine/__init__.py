"""Many conversations on one model. Needs the extra ``model``."""

from baleen.engine.batch import Batch, Completion
from baleen.engine.engine import Engine
from baleen.engine.sampling import Guide, SampledToken, Sampling
from baleen.engine.session import Session
from baleen.engine.speculation import DraftingSession

__all__ = [
    "Batch",
    "Completion",
    "DraftingSession",
    "Engine",
    "Guide",
    "SampledToken",
    "Sampling",
    "Session",
]
