"""Taking a Python function to a box and its result back.

The function travels by value: its code, defaults, closure, and the globals that it names
(functions the same way, modules by name, other values pickled), so the box needs none of the
caller's source. The result travels as plain data only: what comes out of a box is never unpickled.
"""

from __future__ import annotations

import base64
import json
import marshal
import pickle
import sys
import sysconfig
import types
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from baleen.errors import UsageError

from .errors import CallError
from .job import make_job
from .spec import MAX_OUTPUT_BYTES, Mount, RunResult

_WORKER = Path(__file__).with_name("worker.py")


def make_call(
    name: str,
    function: Callable[..., Any],
    arguments: tuple[Any, ...],
    options: dict[str, Any],
    *,
    timeout_s: float | None,
) -> dict[str, Any]:
    """Returns the call as a command of the box's interpreter.

    Raises:
        UsageError: something cannot travel, or an argument cannot be right.
    """
    job = make_job(
        ["call", name],
        timeout_s=timeout_s,
        cwd=None,
        env=None,
        stdin=_packed(function, arguments, options),
        user=None,
        max_output_bytes=MAX_OUTPUT_BYTES,
    )
    return job | {"via": "helper"}


def _packed(
    function: Callable[..., Any], arguments: tuple[Any, ...], options: dict[str, Any]
) -> bytes:
    """Returns the bytes that the worker in the box turns into a call.

    Raises:
        UsageError: something that the function needs cannot travel; names it.
    """
    if not isinstance(function, types.FunctionType):
        raise UsageError(f"{function!r} is not a Python function", remedy="wrap it in one")
    try:
        return pickle.dumps((_pack(function, set()), arguments, options), protocol=5)
    except (pickle.PicklingError, TypeError, AttributeError) as error:
        raise UsageError(f"{function.__qualname__} cannot travel: {error}") from error


def _pack(value: Any, above: set[types.CodeType]) -> tuple[Any, ...]:
    if isinstance(value, types.ModuleType):
        return ("module", value.__name__)
    if not isinstance(value, types.FunctionType):
        return ("value", value)
    if value.__code__ in above:
        raise UsageError(
            f"{value.__qualname__} calls itself through another function; pass it as an argument"
        )
    above = above | {value.__code__}
    names = {
        name: ("self",)
        if value.__globals__[name] is value
        else _pack(value.__globals__[name], above)
        for name in _names(value.__code__)
        if name in value.__globals__
    }
    cells = [_pack(cell.cell_contents, above) for cell in value.__closure__ or ()]
    code = marshal.dumps(value.__code__)
    return (
        "function",
        value.__name__,
        code,
        value.__defaults__,
        value.__kwdefaults__,
        cells,
        names,
    )


def _names(code: types.CodeType) -> set[str]:
    """Every global name that the code or a function inside it may use."""
    inner = (const for const in code.co_consts if isinstance(const, types.CodeType))
    return set(code.co_names).union(*map(_names, inner))


def result_of_call(name: str, result: RunResult) -> Any:
    """Returns the value that a call gave.

    Raises:
        CallError: the function raised, ran out of time, or was killed.
    """
    printed = result.stderr.decode("utf-8", "replace")
    if result.timed_out:
        raise CallError(
            f"{name} did not end within its timeout_s", kind="TimeoutError", output=printed
        )
    try:
        answer = json.loads(result.stdout)
    except ValueError:
        text = f"{name} ended without a result, exit code {result.exit_code}"
        if result.out_of_memory:
            text = f"{name} was killed: the box is out of memory"
        elif result.truncated:
            text = f"{name} returned more than {MAX_OUTPUT_BYTES} bytes, or printed over its result"
        raise CallError(text, kind="Killed", output=printed) from None
    if "error" in answer:
        raise CallError(
            f"{name} raised {answer['error']}: {answer['text']}",
            kind=answer["error"],
            output=printed,
        )
    return _value(answer["value"])


def _value(data: Any) -> Any:
    if not isinstance(data, dict):
        return data
    ((kind, content),) = data.items()
    if kind == "bytes":
        return base64.b64decode(content)
    if kind == "dict":
        return {_value(key): _value(item) for key, item in content}
    items = [_value(item) for item in content]
    return tuple(items) if kind == "tuple" else items


def interpreter() -> tuple[list[str], list[Mount]]:
    """This interpreter with its import path, and the host folders that both need in the box."""
    folders = {Path(p).resolve() for p in (sys.base_prefix, sys.prefix, *_library_folders())}
    needed = sorted(f for f in folders if f.is_dir() and not f.is_relative_to("/usr"))
    outermost = [f for f in needed if not any(f != g and f.is_relative_to(g) for g in needed)]
    visible = [*outermost, Path("/usr")]
    paths = [Path(entry).resolve() for entry in sys.path if entry]
    paths = [p for p in paths if p.exists() and any(p.is_relative_to(folder) for folder in visible)]
    # The real file, since a virtual environment's link leads through folders that the box lacks.
    executable = str(Path(sys.executable).resolve())
    return [executable, *map(str, paths)], [Mount(str(f), str(f)) for f in outermost]


def _library_folders() -> list[str]:
    return [path for name, path in sysconfig.get_paths().items() if name.endswith("lib")]


def helper_argv(python: Sequence[str]) -> list[str]:
    """The command that runs the worker in the box: interpreter, source, import path."""
    executable, *paths = python
    return [executable, "-I", "-S", "-c", _WORKER.read_text(), json.dumps(paths)]
