"""A command as it travels to the box and into the log: checked before anything is asked."""

from __future__ import annotations

import math
import os
import signal
import uuid
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from baleen.errors import UsageError

from .spec import HARD_MAX_INPUT_BYTES, HARD_MAX_OUTPUT_BYTES

Word = str | bytes | os.PathLike[str]
Argv = Sequence[Word]
Input = bytes | bytearray | memoryview | str

NO_LIMIT_S = 1e9
"""Thirty years: who asks for more means no limit."""


def make_job(
    argv: Argv,
    *,
    timeout_s: float | None,
    cwd: str | os.PathLike[str] | None,
    env: Mapping[str, str | bytes] | None,
    stdin: Input | None,
    user: str | int | None,
    max_output_bytes: int,
) -> dict[str, Any]:
    """Returns the command as plain data.

    Raises:
        UsageError: an argument cannot be right; names it.
    """
    if isinstance(argv, (str, bytes)) or not isinstance(argv, Iterable):
        raise UsageError(f"argv must be a list, not {argv!r}", remedy="use shell() for a line")
    words = [_word("argv", part) for part in argv]
    if not words or not words[0]:
        raise UsageError(f"argv={words!r} names no command")
    return {
        "argv": words,
        "timeout_ms": _timeout_ms(timeout_s),
        "cwd": None if cwd is None else _word("cwd", cwd),
        "env": {_name(name): _variable(name, value) for name, value in (env or {}).items()},
        "stdin": None if stdin is None else _input(stdin),
        "user": None if user is None else _user(user),
        "max_output": _max_output(max_output_bytes),
    }


def key_of(key: str | None) -> str:
    """Returns the key, a fresh one if there is none; UsageError where it tells nothing apart."""
    if key is None:
        return f"auto:{uuid.uuid4().hex}"
    if not isinstance(key, str) or not key:
        raise UsageError(f"key={key!r} is not a non-empty str")
    return key


def check_signal(number: int) -> int:
    """Returns a signal's number, or raises UsageError where there is no such signal."""
    if isinstance(number, bool) or not isinstance(number, int) or not 0 < number < signal.NSIG:
        raise UsageError(f"signal {number!r} is not in 1..{signal.NSIG - 1}", remedy="e.g. SIGTERM")
    return int(number)


def check_window(rows: int, columns: int) -> None:
    """Raises UsageError where a terminal cannot be of that size."""
    for size in (rows, columns):
        if not isinstance(size, int) or not 0 < size < 1 << 16:
            raise UsageError(f"a window of {rows!r} rows and {columns!r} columns cannot be")


def _word(what: str, value: Word) -> str | bytes:
    """A string that a process can be given; what is no UTF-8 travels as the bytes it stands for."""
    try:
        word = value if isinstance(value, (str, bytes)) else os.fspath(value)
        if isinstance(word, str) and not word.isascii():
            encoded = os.fsencode(word)
            word = encoded if _has_surrogates(word) else word
    except (TypeError, UnicodeEncodeError) as error:
        raise UsageError(f"{what}: {value!r} is no text, bytes or path: {error}") from None
    if (0 in word) if isinstance(word, bytes) else ("\0" in word):
        raise UsageError(f"{what}: {value!r} holds a NUL, which no process can be given")
    return word


def _has_surrogates(text: str) -> bool:
    return any("\ud800" <= letter <= "\udfff" for letter in text)


def _name(name: str) -> str:
    is_fit = isinstance(name, str) and name and "=" not in name and "\0" not in name
    if not is_fit or (not name.isascii() and _has_surrogates(name)):
        raise UsageError(f"env: {name!r} cannot be a variable's name")
    return name


def _variable(name: str, value: str | bytes) -> str | bytes:
    if isinstance(value, str) and value.isascii() and "\0" not in value:
        return value  # nearly all are, and every command brings some
    return _word(f"env[{name!r}]", value)


def _timeout_ms(timeout_s: float | None) -> int | None:
    if timeout_s is None:
        return None
    if not isinstance(timeout_s, (int, float)) or not timeout_s > 0 or math.isnan(timeout_s):
        raise UsageError(f"timeout_s={timeout_s!r} is not positive", remedy="None means no limit")
    return None if timeout_s >= NO_LIMIT_S else max(1, int(timeout_s * 1000))


def _input(stdin: Input) -> bytes:
    if not isinstance(stdin, (bytes, bytearray, memoryview, str)):
        raise UsageError(f"stdin={stdin!r} is neither bytes nor str")
    data = stdin.encode() if isinstance(stdin, str) else bytes(stdin)
    if len(data) > HARD_MAX_INPUT_BYTES:
        raise UsageError(
            f"stdin of {len(data)} bytes is over the limit of {HARD_MAX_INPUT_BYTES}",
            remedy="box.files.upload() it and read that file, or feed a stream() piece by piece",
        )
    return data


def _user(user: str | int) -> str:
    if isinstance(user, bool) or not isinstance(user, (str, int)):
        raise UsageError(f"user={user!r} is not a name, a uid or 'uid:gid'")
    return str(user)


def _max_output(count: int) -> int:
    if not isinstance(count, int) or not 0 <= count <= HARD_MAX_OUTPUT_BYTES:
        raise UsageError(f"max_output_bytes={count!r} is not in 0..{HARD_MAX_OUTPUT_BYTES}")
    return count
