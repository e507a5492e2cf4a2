"""Before any training: the model solution must score 1 and doing nothing 0, in real sandboxes.

A reward that is zero for a broken shell or one for everybody trains on noise; both have cost people
days. So the oracle runs the solution's commands and must see the outputs that training is going to
imitate, and a policy that ends its turn at once must earn nothing.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Sequence

from baleen.errors import RunError, SandboxError
from baleen.rl.boxes import TaskBoxes
from baleen.rl.tasks import Split, Task, arithmetic_task, lookup_task

TASKS_PER_FAMILY = 12


def preflight(seed: int) -> None:
    """Checks tasks, rewards and sandbox together.

    Raises:
        RunError: naming the first task that failed, and how.
    """
    rng = random.Random(f"preflight|{seed}")
    tasks = [
        draw(rng, split)
        for draw in (lookup_task, arithmetic_task)
        for split in Split
        for _ in range(TASKS_PER_FAMILY // 2)
    ]
    for task in tasks:
        if task.is_correct(""):
            raise RunError(f"preflight: no answer at all is accepted for {task.question!r}")
        if not task.is_correct(task.solution.answer):
            raise RunError(f"preflight: the solution is rejected for {task.question!r}")
    asyncio.run(_run_solutions(tasks))


async def _run_solutions(tasks: Sequence[Task]) -> None:
    """Every command of every solution prints what the solution says it prints."""
    async with TaskBoxes(tasks, "preflight") as boxes:
        for turn in range(max(len(task.solution.calls) for task in tasks)):
            calls = {
                number: task.solution.calls[turn]
                for number, task in enumerate(tasks)
                if turn < len(task.solution.calls)
            }
            shown = await boxes.run({number: call.command for number, call in calls.items()})
            for number, call in calls.items():
                output = shown[number]
                if isinstance(output, SandboxError):
                    raise RunError(f"preflight: the sandbox failed: {output}") from output
                if output != call.output:
                    raise RunError(
                        f"preflight: {call.command!r} printed {output!r}, not {call.output!r}"
                    )
