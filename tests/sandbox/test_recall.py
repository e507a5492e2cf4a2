"""What the log of a dead box still answers."""

from __future__ import annotations

import asyncio
import os
import signal

import pytest

from baleen.sandbox import InDoubtError, Sandbox, recall
from baleen.sandbox.home import Home


async def test_the_log_of_a_box_that_is_gone_tells_what_became_of_each_command(
    host: Home,
) -> None:
    box = await Sandbox.create()
    done = await box.run(["echo", "hi"], key="done")
    lost = asyncio.create_task(box.run(["sleep", "60"], key="lost"))
    await asyncio.sleep(0.3)
    (row,) = await Sandbox.list()
    os.kill(row["pid"], signal.SIGKILL)
    with pytest.raises(InDoubtError):
        await lost
    await box.detach()
    known = recall(box.trajectory, "done")
    assert known is not None
    assert (known.stdout, known.replayed) == (done.stdout, True)
    with pytest.raises(InDoubtError, match="'lost'"):
        recall(box.trajectory, "lost")
    assert recall(box.trajectory, "never begun") is None
