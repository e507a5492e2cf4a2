"""The function backend: a call in a fresh fork, by value there, as plain data back."""

from __future__ import annotations

import asyncio
import math
import os
import time
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from baleen.errors import UsageError
from baleen.sandbox import BoxBusyError, CallError, DivergenceError, InDoubtError, Sandbox
from baleen.sandbox.home import Home

from .conftest import needs_limits

FACTOR = 3


def scaled(number: float) -> float:
    return helper(number) * FACTOR


def helper(number: float) -> float:
    return math.sqrt(number)


def factorial(n: int) -> int:
    return 1 if n < 2 else n * factorial(n - 1)


@pytest.fixture
async def functions(host: Home) -> AsyncIterator[Sandbox]:
    async with await Sandbox.create(backend="function") as made:
        yield made


async def test_a_function_travels_with_its_helpers_modules_and_closure(functions: Sandbox) -> None:
    offset = 0.5
    assert await functions.call(scaled, 16.0) == 12.0
    assert await functions.call(lambda x: scaled(x) + offset, 4.0) == 6.5
    assert await functions.call(factorial, 20) == math.factorial(20)


async def test_plain_data_comes_back_as_it_was(functions: Sandbox) -> None:
    value = {"a": [1, 2.5, None, True], (1, "k"): b"\xff\0", 3: ("t", [()]), "dict": {"bytes": "x"}}
    assert await functions.call(lambda v: v, value) == value


async def test_each_call_is_a_fork_of_its_own_in_the_box(functions: Sandbox) -> None:
    def count() -> tuple[int, int]:
        import builtins

        builtins.calls = getattr(builtins, "calls", 0) + 1  # type: ignore[attr-defined]
        return builtins.calls, os.getpid()  # type: ignore[attr-defined]

    first, second = await functions.call(count), await functions.call(count)
    assert (first[0], second[0]) == (1, 1)
    assert first[1] != second[1]
    assert (await functions.call(lambda: [str(p) for p in Path("/home").iterdir()])) == []


async def test_what_a_call_raises_or_prints_is_told(functions: Sandbox) -> None:
    def fail() -> None:
        print("before")
        raise KeyError("krill")

    with pytest.raises(CallError, match="raised KeyError: 'krill'") as caught:
        await functions.call(fail)
    assert caught.value.kind == "KeyError"
    assert caught.value.output.startswith("before\nTraceback")
    with pytest.raises(CallError, match="exit code 137"):
        await functions.call(lambda: os.kill(os.getpid(), 9))
    with pytest.raises(CallError, match="plain data, not object"):
        await functions.call(lambda: object())
    with pytest.raises(CallError, match="more than 10485760 bytes"):
        await functions.call(lambda: "x" * (11 << 20))


@needs_limits
async def test_a_call_that_needs_too_much_memory_says_so(functions: Sandbox) -> None:
    with pytest.raises(CallError, match="out of memory"):
        await functions.call(lambda: len(bytearray(900 << 20)))
    assert await functions.call(lambda: 5) == 5


async def test_a_call_that_runs_too_long_is_killed_with_its_children(functions: Sandbox) -> None:
    def linger() -> None:
        if os.fork() == 0:
            os.setsid()
            if os.fork() == 0:
                time.sleep(60)
        time.sleep(60)

    started = time.monotonic()
    with pytest.raises(CallError, match="timeout_s"):
        await functions.call(linger, timeout_s=0.5)
    assert time.monotonic() - started < 5
    pythons = (await functions.run(["pgrep", "-c", "python"])).text
    assert pythons == "3\n"  # the worker, and the two processes that wait for the next call


async def test_keys_hold_for_calls_too(functions: Sandbox) -> None:
    def append(word: str) -> int:
        with Path("/tmp/words").open("a") as file:
            return file.write(word)

    assert await functions.call(append, "abc", key="k") == 3
    assert await functions.call(append, "abc", key="k") == 3
    assert (await functions.run(["cat", "/tmp/words"])).text == "abc"
    with pytest.raises(DivergenceError):
        await functions.call(append, "other", key="k")


async def test_the_worker_is_started_again_after_something_killed_it(functions: Sandbox) -> None:
    await functions.call(scaled, 1.0)
    await functions.run(["pkill", "-9", "python"])
    for _ in range(5):
        try:
            assert await functions.call(scaled, 1.0) == 3.0
            return
        except (CallError, BoxBusyError, InDoubtError):
            await asyncio.sleep(0.1)  # its death may be noticed during the first call
    pytest.fail("the worker did not come back")


async def test_a_waiting_process_that_something_killed_is_replaced_before_the_call(
    functions: Sandbox,
) -> None:
    for which in (0, 1):  # the supervisor, the process of the next call
        await functions.call(scaled, 1.0)
        found = await functions.run(["pgrep", "python"])
        worker, *waiting = sorted(map(int, found.text.split()))
        await functions.run(["kill", "-9", str(waiting[which])])
        assert await functions.call(lambda: os.getppid()) != worker
        assert await functions.call(scaled, 1.0) == 3.0


async def test_what_cannot_travel_is_refused_before_the_call(
    functions: Sandbox, box: Sandbox
) -> None:
    with Path(os.devnull).open() as file, pytest.raises(UsageError, match="cannot travel"):
        await functions.call(lambda: file)
    with pytest.raises(UsageError, match="not a Python function"):
        await functions.call(print, "x")
    with pytest.raises(UsageError, match='backend="function"'):
        await box.call(scaled, 1.0)
