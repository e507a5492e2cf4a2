"""Which prompt a checkpoint was trained on, and the words for its reasoning efforts.

Three prompt revisions exist and nothing in a prompt says which one it is: a model given the wrong
one answers, only worse. The revision is therefore explicit everywhere, and can be read off the
encoder file that ships beside the weights (``encoding/encoding_dsv4.py``), as text, never executed.
"""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import Final

from baleen.protocol.errors import EffortError, RevisionError


class Revision(StrEnum):
    """A prompt revision."""

    PREVIEW = "preview"
    """V4-Flash and V4-Pro of April 2026."""
    R0731 = "0731"
    """V4-Flash-0731 and everything after it until V4.1."""
    V41 = "v4.1"
    """V4.1: tags with an inner space, system turns with their own token."""


class Flavor(StrEnum):
    """Whose rendering is followed where the two published encoders disagree."""

    API = "api"
    """The hosted API, as published in the deepseek-recipe package."""
    CHECKPOINT = "checkpoint"
    """The encoder file in the weight repositories."""


EFFORT_ABSOLUTE: Final = (
    "Reasoning Effort: Absolute maximum with no shortcuts permitted.\n"
    "You MUST be very thorough in your thinking and comprehensively decompose the problem to"
    " resolve the root cause, rigorously stress-testing your logic against all potential paths,"
    " edge cases, and adversarial scenarios.\n"
    "Explicitly write out your entire deliberation process, documenting every intermediate step,"
    " considered alternative, and rejected hypothesis to ensure absolutely no assumption is left"
    " unchecked.\n\n"
)
EFFORT_BEYOND: Final = (
    "Reasoning Effort: Beyond maximum — exhaustive, relentless, and uncompromising.\n"
    "You MUST reason with the utmost depth and rigor, leaving absolutely nothing to chance:"
    " exhaustively decompose the problem into its most fundamental components, trace every causal"
    " chain to its root, and resolve the underlying cause rather than any surface symptom.\n"
    "Do not stop reasoning until you have independently verified the solution from multiple angles"
    " and are certain that no assumption remains unchecked and no error remains undiscovered.\n\n"
)
EFFORT_SCALE: Final = (
    "Reasoning Effort: {n} (range 1-100, the higher the value, the more thorough the reasoning)\n\n"
)

Effort = str | int | None

_API_LEVELS: Final = {
    "minimal": "low",
    "low": "low",
    "medium": "high",
    "high": "high",
    "xhigh": "high",
    "max": "max",
    "ultra": "max",
}
_PREFIX: Final[dict[Revision, dict[str, str]]] = {
    Revision.PREVIEW: {"high": "", "max": EFFORT_ABSOLUTE},
    Revision.R0731: {"low": "", "high": EFFORT_ABSOLUTE, "max": EFFORT_BEYOND},
    Revision.V41: {
        "low": EFFORT_SCALE.format(n=50),
        "high": EFFORT_SCALE.format(n=75),
        "max": EFFORT_SCALE.format(n=100),
    },
}
_CHECKPOINT_DEFAULT: Final = {
    Revision.PREVIEW: "high",
    Revision.R0731: "low",
    Revision.V41: "high",
}


def effort_prefix(revision: Revision, flavor: Flavor, effort: Effort) -> str:
    """The text that opens a thinking prompt at this effort.

    It stands at position 0: another effort in the same conversation voids the prefix cache.

    Raises:
        EffortError: the revision has no words for this effort.
    """
    if isinstance(effort, int):
        return _numbered_prefix(revision, effort)
    if not (effort is None or isinstance(effort, str)):
        raise EffortError("reasoning effort must be a string or a number")
    levels = _PREFIX[revision]
    if effort is None:
        level = "high" if flavor is Flavor.API else _CHECKPOINT_DEFAULT[revision]
    elif flavor is Flavor.API:
        level = _API_LEVELS.get(effort, effort)
    else:
        # V4.1's encoder alone has a third name for its default.
        level = "high" if (revision, effort) == (Revision.V41, "xhigh") else effort
    if level not in levels:
        known = [*_API_LEVELS, "none"] if flavor is Flavor.API else list(levels)
        known = [name for name in known if _API_LEVELS.get(name, "high") in levels]
        raise EffortError(
            f"reasoning effort {effort!r} is unknown to revision {revision.value}",
            remedy=f"use one of {', '.join(known)}",
        )
    return levels[level]


def _numbered_prefix(revision: Revision, effort: int) -> str:
    if revision is not Revision.V41 or not 1 <= effort <= 100:
        raise EffortError(
            f"reasoning effort {effort!r} is unknown to revision {revision.value}",
            remedy="numbers from 1 to 100 exist in v4.1 only; elsewhere use low, high or max",
        )
    return EFFORT_SCALE.format(n=effort)


def detect_revision(checkpoint: str | Path) -> Revision:
    """Read the revision off a checkpoint folder, or off an encoder file itself.

    The encoder file is searched as text and never executed: a file of V4.1 names the spaced tags,
    one of 0731 has the stronger effort text or a default effort of ``low``, a preview file neither.

    Raises:
        RevisionError: there is no encoder file, or it is not one of DeepSeek-V4.
    """
    path = Path(checkpoint)
    candidates = [path] if path.is_file() else sorted(path.glob("encoding/encoding_dsv4*.py"))
    if not candidates:
        raise RevisionError(
            f"{path} holds no encoding/encoding_dsv4.py to read the prompt revision from",
            remedy="name it: preview, 0731 or v4.1",
        )
    source = candidates[-1].read_text(encoding="utf-8", errors="replace")
    if "｜DSML｜" not in source:
        raise RevisionError(
            f"{candidates[-1]} does not look like an encoder of DeepSeek-V4",
            remedy="name the revision: preview, 0731 or v4.1",
        )
    return _revision_of_source(source)


def _revision_of_source(source: str) -> Revision:
    compact = source.replace(" ", "").replace("'", '"')
    if "<｜System｜>" in source or "range 1-100" in source:
        return Revision.V41
    if "Beyond maximum" in source or 'DEFAULT_REASONING_EFFORT="low"' in compact:
        return Revision.R0731
    if 'DEFAULT_REASONING_EFFORT:str="low"' in compact:
        return Revision.R0731
    return Revision.PREVIEW
