"""Sandboxes where tools run: fast, isolated, and never running a command twice.

>>> async with await Sandbox.create() as box:
...     result = await box.run(["echo", "hi"])

``baleen.sandbox.sync`` has the same names without ``await``.
"""

from baleen.errors import SandboxError

from .backends import Backend
from .errors import (
    BoxBusyError,
    BoxFileError,
    BoxGoneError,
    CallError,
    CapacityError,
    Cause,
    DivergenceError,
    EdgeError,
    HostError,
    InDoubtError,
    LaunchError,
    TrajectoryError,
    UnsupportedError,
)
from .files import FileInfo, Files
from .process import Output, Process
from .recall import recall
from .sandbox import Sandbox
from .spec import Allowlist, RunResult

__all__ = [
    "Allowlist",
    "Backend",
    "BoxBusyError",
    "BoxFileError",
    "BoxGoneError",
    "CallError",
    "CapacityError",
    "Cause",
    "DivergenceError",
    "EdgeError",
    "FileInfo",
    "Files",
    "HostError",
    "InDoubtError",
    "LaunchError",
    "Output",
    "Process",
    "RunResult",
    "Sandbox",
    "SandboxError",
    "TrajectoryError",
    "UnsupportedError",
    "recall",
]
