"""How a run can end."""

from __future__ import annotations

from enum import StrEnum


class Outcome(StrEnum):
    """The closed set of endings; whether a `stop` was a right answer is for a verifier to say."""

    STOP = "stop"
    """The model ended its turn with an answer."""

    BUDGET = "budget"
    """Turns, tokens or time ran out before an answer."""

    MODEL_ERROR = "model_error"
    """The model repeated itself, kept making calls that cannot be run, or answered nothing."""

    INFRA_ERROR = "infra_error"
    """Endpoint or sandbox failed; says nothing about the model, and the run can be resumed."""
