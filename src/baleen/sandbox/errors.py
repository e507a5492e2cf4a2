"""What a sandbox can raise: always about the infrastructure, never the result of a command.

::

    SandboxError
    ├── HostError         sandbox-host         this host cannot run boxes (rights, kernel, binary)
    ├── UnsupportedError  sandbox-unsupported  a backend, image or network mode not offered here
    ├── CapacityError     sandbox-capacity     admission refused: the host would suffer
    ├── LaunchError       sandbox-launch       a box could not be started
    ├── EdgeError         sandbox-edge         the edge daemon is unreachable or of another version
    ├── BoxGoneError      sandbox-gone         the box no longer exists; ``cause`` says why
    ├── BoxBusyError      sandbox-busy         nothing started: the box is at one of its limits
    ├── DivergenceError   sandbox-divergence   a key was used again with other arguments
    ├── InDoubtError      sandbox-in-doubt     dispatched, result unknown; never run again silently
    ├── TrajectoryError   sandbox-trajectory   the log is damaged or cannot be written
    ├── CallError         sandbox-call         a function called in a box gave no value
    ├── BoxFileError      sandbox-file         a file operation in the box failed (also OSError)
    └── (of images: see ``images/errors.py``)
"""

from __future__ import annotations

from enum import StrEnum
from errno import EDQUOT, ENOSPC
from typing import Any

from baleen.errors import SandboxError, UsageError

from .images.errors import LEAVES as IMAGE_LEAVES


class Cause(StrEnum):
    """Why a box ended."""

    STOPPED = "stopped"
    """Its owner closed it."""
    EXPIRED = "expired"
    """No client and no command for longer than ``ttl_idle_s``."""
    EVICTED = "evicted"
    """Somebody else removed it, for instance ``reap --job``."""
    OUT_OF_MEMORY = "oom"
    """The kernel killed process 1 at the memory limit."""
    DISK_FULL = "disk-full"
    """Its log could not be written any more."""
    NODE_LOST = "node-lost"
    """The host or the box's process 1 went away without a trace."""
    INFRA = "infra"
    """Anything else that is not the caller's doing."""


class HostError(SandboxError):
    """This host cannot run boxes: no Linux, no rights, a missing controller or binary."""

    code = "sandbox-host"


class UnsupportedError(SandboxError):
    """A backend, image or network mode that is not available here; the message has the reason."""

    code = "sandbox-unsupported"


class CapacityError(SandboxError):
    """Admission refused a box before the host suffers; names the limit and its setting."""

    code = "sandbox-capacity"


class LaunchError(SandboxError):
    """A box could not be started; nothing of it is left."""

    code = "sandbox-launch"


class EdgeError(SandboxError):
    """The edge daemon is unreachable, does not start, or speaks another version."""

    code = "sandbox-edge"


class BoxGoneError(SandboxError):
    """The box no longer exists; ``cause`` says why."""

    code = "sandbox-gone"

    def __init__(
        self, message: str, *, remedy: str | None = None, cause: str = Cause.NODE_LOST
    ) -> None:
        super().__init__(message, remedy=remedy)
        self.cause = Cause(cause)


class BoxBusyError(SandboxError):
    """The command did not start because the box is at its pids or memory limit."""

    code = "sandbox-busy"


class DivergenceError(SandboxError):
    """A key came back with other arguments than the recorded ones; nothing was run."""

    code = "sandbox-divergence"


class InDoubtError(SandboxError):
    """A command was dispatched and its result is lost: it may or may not have run."""

    code = "sandbox-in-doubt"


class TrajectoryError(SandboxError):
    """The trajectory log is damaged, or the disk refuses a record."""

    code = "sandbox-trajectory"


class CallError(SandboxError):
    """A function called in a box raised, was killed or ran out of time.

    The one error here that is about the caller's own code: ``kind`` names the exception's type
    there, ``output`` is what it printed, traceback included.
    """

    code = "sandbox-call"

    def __init__(
        self, message: str, *, remedy: str | None = None, kind: str = "", output: str = ""
    ) -> None:
        super().__init__(message, remedy=remedy)
        self.kind = kind
        self.output = output


class BoxFileError(SandboxError, OSError):
    """A file operation in the box failed; ``errno`` is the box's.

    ``cause`` is "disk-full" where the box has written all of its ``disk_mb``, otherwise None.
    """

    code = "sandbox-file"

    def __init__(
        self, message: str, *, remedy: str | None = None, errno: int = 0, cause: str | None = None
    ) -> None:
        super().__init__(message, remedy=remedy)
        self.errno = errno
        if cause is None and errno in (ENOSPC, EDQUOT):
            cause = Cause.DISK_FULL
        self.cause = Cause(cause) if cause is not None else None


_KINDS: tuple[type[SandboxError | UsageError], ...] = (
    SandboxError,
    HostError,
    UnsupportedError,
    CapacityError,
    LaunchError,
    EdgeError,
    BoxGoneError,
    BoxBusyError,
    DivergenceError,
    InDoubtError,
    TrajectoryError,
    BoxFileError,
    *IMAGE_LEAVES,
    UsageError,
)
_LEAVES = {kind.code: kind for kind in _KINDS}


def to_wire(error: SandboxError | UsageError) -> dict[str, Any]:
    """Turns an error into the plain data that crosses the edge's socket."""
    extra = {
        name: getattr(error, name) for name in ("cause", "errno") if getattr(error, name, None)
    }
    return {"code": error.code, "message": error.message, "remedy": error.remedy, **extra}


def from_wire(data: dict[str, Any]) -> SandboxError | UsageError:
    """Rebuilds what :func:`to_wire` made; an unknown code becomes a plain SandboxError."""
    kind = _LEAVES.get(data["code"], SandboxError)
    extra = {name: data[name] for name in ("cause", "errno") if name in data}
    return kind(data["message"], remedy=data.get("remedy"), **extra)
