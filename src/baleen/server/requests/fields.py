"""Fields that several dialects have, read and refused in the same words."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from baleen.server.errors import BadRequestError

_MAX_STOPS: Final = 16


def integer(body: Mapping[str, Any], name: str) -> int | None:
    """An integer field; None where it is missing.

    Raises:
        BadRequestError: it is something else.
    """
    value = body.get(name)
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int):
        raise BadRequestError(f"`{name}` must be an integer, not {type(value).__name__}")
    return value


def ranged(body: Mapping[str, Any], name: str, low: float, high: float) -> float | None:
    """A number within bounds; None where it is missing.

    Raises:
        BadRequestError: it is something else.
    """
    value = body.get(name)
    if value is None:
        return None
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    if not is_number or not low <= value <= high:
        raise BadRequestError(
            f"Invalid {name} value, the valid range of {name} is [{low:g}, {high:g}]"
        )
    return float(value)


def check_one(body: Mapping[str, Any], name: str) -> None:
    """A number of answers: one.

    Raises:
        BadRequestError: it is another.
    """
    given = integer(body, name)
    if given is not None and given != 1:
        raise BadRequestError(f"Invalid {name} value (currently only {name} = 1 is supported)")


def stops_of(given: Any) -> tuple[str, ...]:
    """Stop strings.

    Raises:
        BadRequestError: there are too many, or they are no strings.
    """
    listed = [given] if isinstance(given, str) else given or []
    if not isinstance(listed, list) or not all(isinstance(stop, str) for stop in listed):
        raise BadRequestError("`stop` must be a string or a list of strings")
    if len(listed) > _MAX_STOPS:
        raise BadRequestError(f"`stop` holds {len(listed)} strings, at most {_MAX_STOPS} can be")
    return tuple(filter(None, listed))
