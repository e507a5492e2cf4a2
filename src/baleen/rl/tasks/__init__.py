"""Tasks with a checkable answer, for training and for measuring."""

from baleen.rl.tasks.arithmetic import arithmetic_task
from baleen.rl.tasks.base import Call, Family, Split, Task, Trace
from baleen.rl.tasks.lookup import lookup_task
from baleen.rl.tasks.other import other_task

__all__ = [
    "Call",
    "Family",
    "Split",
    "Task",
    "Trace",
    "arithmetic_task",
    "lookup_task",
    "other_task",
]
