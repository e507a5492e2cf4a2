"""Forks client processes on request, so that a test can kill many without paying for Python starts.

Reads lines "BOX-ID ACKS-FILE" and answers each with the process id of a new client.
"""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from pathlib import Path

from baleen.sandbox import Sandbox

COUNT = "echo $1 >> /tmp/count; sleep 0.02; wc -l < /tmp/count"


def counted(word: str) -> list[str]:
    """A command that must not run twice: it appends to a file of the box."""
    return ["sh", "-c", COUNT, "count", word]


async def client(box_id: str, acks: Path) -> None:
    """Runs numbered commands for ever and notes each acknowledged one.

    It begins after the last number noted, so the command that was under way when the last client
    was killed is asked for again: the key decides whether it runs.
    """
    box = await Sandbox.attach(box_id)
    number = len(acks.read_text().split())
    with acks.open("a") as notes:
        while True:
            await box.run(counted(str(number)), key=f"step-{number}")
            notes.write(f"{number}\n")
            notes.flush()
            number += 1


def main() -> None:
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)
    for line in sys.stdin:
        box_id, acks = line.split()
        pid = os.fork()
        if pid == 0:
            signal.signal(signal.SIGCHLD, signal.SIG_DFL)
            asyncio.run(client(box_id, Path(acks)))
        print(pid, flush=True)


if __name__ == "__main__":
    main()
