"""What can go wrong with a run folder.

::

    RunError                 run
    ├── WalError             wal              the log is damaged or of another version
    └── RunBusyError         run-busy         another process works on this run
"""

from __future__ import annotations

from baleen.errors import RunError


class WalError(RunError):
    """The log of a run is damaged in a place that cannot be a torn tail, or not understood."""

    code = "wal"


class RunBusyError(RunError):
    """Another process holds the run."""

    code = "run-busy"
