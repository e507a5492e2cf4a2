"""Ctrl-C and SIGTERM for verbs that hold something: cancel, let it clean up, exit 128 + n.

The first signal cancels the work, which closes sandboxes on its way out. After it the signals have
their usual effect again, so a second one ends the process at once; what is left then is freed by
its lease. `kill -9` is covered by leases alone.
"""

from __future__ import annotations

import asyncio
import signal
from collections.abc import Coroutine
from typing import Any, TypeVar

import click

_SIGNALS = (signal.SIGINT, signal.SIGTERM)
T = TypeVar("T")


def run_until_stopped(work: Coroutine[Any, Any, T]) -> T:
    """Run a coroutine to its end.

    Raises:
        click.exceptions.Exit: with 130 or 143, after a signal and the clean-up that it caused.
    """
    received: list[signal.Signals] = []

    async def supervise() -> T:
        loop = asyncio.get_running_loop()
        task = loop.create_task(work)

        def stop(number: signal.Signals) -> None:
            received.append(number)
            for each in _SIGNALS:
                loop.remove_signal_handler(each)
            task.cancel()

        for number in _SIGNALS:
            loop.add_signal_handler(number, stop, number)
        return await task

    try:
        return asyncio.run(supervise())
    except asyncio.CancelledError:
        if not received:
            raise
        click.echo(f"baleen: stopped by {received[0].name}", err=True)
        raise click.exceptions.Exit(128 + received[0]) from None
