"""JSON text exactly as the two published encoders print it.

The model has only ever seen arguments and schemas in these spellings, so they are part of the
format. Both print like Python's ``json.dumps(x, ensure_ascii=False)``. The API's encoder differs in
numbers (integers beyond 64 bits become floats, small exponents lose their padding) and in what it
accepts (no NaN, no infinities, no lone surrogates, at most 127 levels).
"""

from __future__ import annotations

import json
from typing import Any, Final

_MAX_DEPTH: Final = 127
_INT64_MIN: Final = -(2**63)
_UINT64_MAX: Final = 2**64 - 1


def dumps(value: Any) -> str:
    """Print as Python does; lone surrogates survive."""
    return json.dumps(value, ensure_ascii=False)


def dumps_api(value: Any) -> str:
    """Print as the API's encoder does; ``value`` comes from :func:`loads_api` or a request body."""
    text = json.dumps(value, ensure_ascii=False)
    return _print(value) if "e-0" in text else text


def _print(value: Any) -> str:
    if isinstance(value, float):
        return _float_text(value)
    if isinstance(value, dict):
        members = (f"{dumps(key)}: {_print(item)}" for key, item in value.items())
        return "{" + ", ".join(members) + "}"
    if isinstance(value, list | tuple):
        return "[" + ", ".join(_print(item) for item in value) + "]"
    return dumps(value)


def _float_text(value: float) -> str:
    """Shortest digits, fixed-point down to 1e-5, exponents without leading zeros."""
    text = repr(value)
    mantissa, mark, exponent = text.partition("e-0")
    if not mark:
        return text
    if exponent != "5":
        return f"{mantissa}e-{exponent}"
    sign = "-" if mantissa.startswith("-") else ""
    return f"{sign}0.0000{mantissa.lstrip('-').replace('.', '')}"


def _api_int(digits: str) -> int | float:
    if digits == "-0":
        return -0.0
    if len(digits) < 19:
        return int(digits)
    if len(digits) <= 20 and _INT64_MIN <= (value := int(digits)) <= _UINT64_MAX:
        return value
    return _api_float(digits)


def _api_float(digits: str) -> float:
    value = float(digits)
    if value in (float("inf"), float("-inf")):
        raise ValueError(f"number out of range: {digits[:40]}")
    return value


def _no_constant(name: str) -> Any:
    raise ValueError(f"{name} is not JSON")


_STRICT: Final = json.JSONDecoder(
    parse_int=_api_int, parse_float=_api_float, parse_constant=_no_constant
)


def loads_api(text: str) -> Any:
    """Read JSON as the API does.

    Raises:
        ValueError: the text is not JSON by the API's rules.
    """
    if text.count("[") + text.count("{") > _MAX_DEPTH and depth(text) > _MAX_DEPTH:
        raise ValueError(f"nested deeper than {_MAX_DEPTH} levels")
    if text.startswith("{"):
        value, end = _STRICT.raw_decode(text)
        if text[end:].strip(" \t\n\r"):
            raise ValueError("text behind the JSON value")
    else:
        value = _STRICT.decode(text)
    if "\\u" in text:
        _refuse_surrogates(value)
    return value


def loads_checkpoint(text: str) -> Any:
    """Read JSON as Python does: NaN and infinities pass, the last of equal keys wins.

    Raises:
        ValueError: the text is not JSON, or too deep for Python.
    """
    try:
        return json.loads(text)
    except RecursionError as error:
        raise ValueError("nested too deeply") from error


def _refuse_surrogates(value: Any) -> None:
    try:
        dumps(value).encode()
    except UnicodeEncodeError as error:
        raise ValueError("lone surrogate in a string") from error


def depth(text: str) -> int:
    """How deep brackets and braces nest outside strings."""
    level = deepest = 0
    in_string = escaped = False
    for char in text:
        if escaped:
            escaped = False
        elif in_string:
            if char == "\\":
                escaped = True
            elif char == '"':
                in_string = False
        elif char == '"':
            in_string = True
        elif char in "[{":
            level += 1
            deepest = max(deepest, level)
        elif char in "]}":
            level -= 1
    return deepest


def _any_int(digits: str) -> int | float:
    # Python refuses to convert thousands of digits; their exact value decides nothing here.
    return int(digits) if len(digits) < 1000 else float(digits)


_RFC8259: Final = json.JSONDecoder(parse_int=_any_int, parse_constant=_no_constant)


def read_value_at(text: str, position: int) -> tuple[Any, int]:
    """The JSON value that starts at a position, and the position behind it."""
    return _RFC8259.raw_decode(text, position)


def loads_rfc8259(text: str) -> Any:
    """Read what a model wrote as JSON; numbers of any size pass.

    Raises:
        ValueError: the text is not JSON, or nests deeper than Python can follow.
    """
    try:
        return _RFC8259.decode(text)
    except RecursionError as error:
        raise ValueError("nested too deeply") from error
