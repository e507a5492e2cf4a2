"""What a run may spend before it is ended."""

from __future__ import annotations

from dataclasses import dataclass

from baleen.errors import ConfigError


@dataclass(frozen=True)
class Limits:
    """Bounds of one run; each is named in the outcome that it causes."""

    max_turns: int = 50
    """Model turns; a look-up takes three, a repair in a program some tens."""

    max_tokens: int = 262_144
    """Sampled tokens of the whole run, reasoning included."""

    max_turn_tokens: int = 32_768
    """Sampled tokens of one turn."""

    deadline_s: float = 1_800.0
    """Seconds that one process may work on the run; a resumed run gets them anew."""

    command_timeout_s: float = 60.0
    """Seconds after which one command and all its children are killed."""

    max_repeats: int = 3
    """Identical calls with identical results in a row that end the run."""

    max_invalid: int = 3
    """Calls in a row that cannot be run (unknown tool, unusable arguments) that end the run."""

    def __post_init__(self) -> None:
        for name, value in vars(self).items():
            if value <= 0:
                raise ConfigError(f"{name} is {value}", remedy="give a number above zero")
