"""Features of the kernel that boxes use where they exist, and that a setting turns off.

Each has a fallback or is an extra fence, so boxes run without it; turning one off shows that.
"""

from __future__ import annotations

import os
from dataclasses import dataclass, fields

from .errors import HostError

_PREFIX = "BALEEN_SANDBOX_"


@dataclass(frozen=True)
class Switches:
    """What the edge may use, from its environment."""

    limits: bool = True
    """Control groups; without them nothing keeps a box's memory and processor time down."""

    landlock: bool = True
    """A fence around commands that no uid and no capability opens."""

    idmap: bool = True
    """Lower layers under the box's own ids; without it they belong to nobody in the box, whose root
    can then read them and change none."""

    freezer: bool = True
    """Pausing by the freezer of control groups; without it process 1 of a box stops the others."""

    volatile: bool = True
    """Root's box folders in memory; without it they lie on the disk of ``$BALEEN_HOME``."""

    @classmethod
    def from_environment(cls) -> Switches:
        """Reads ``BALEEN_SANDBOX_LIMITS`` and the like, "auto" or "off".

        Raises:
            HostError: another value.
        """
        names = (field.name for field in fields(cls))
        return cls(**{name: _is_on(_PREFIX + name.upper()) for name in names})


def _is_on(variable: str) -> bool:
    value = os.environ.get(variable, "auto")
    if value not in ("auto", "off"):
        raise HostError(f"{variable}={value!r} is unknown", remedy='use "auto" or "off"')
    return value == "auto"
