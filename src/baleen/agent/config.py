"""What a run was asked to do, resolved: every default filled in, every path absolute."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

from baleen.agent.limits import Limits
from baleen.errors import ConfigError

NANO = "nano"
"""Name of the checkpoint that comes with the package."""

MODES = ("ro", "rw")


@dataclass(frozen=True)
class RunConfig:
    """One question and the means to answer it."""

    question: str

    mount: str | None = None
    """Folder of the host that the agent sees, absolute."""

    mount_mode: str = "ro"
    """`ro`: an agent that only looks things up cannot damage anything."""

    model: str = NANO
    """`nano`, a model folder, or the base URL of an OpenAI-compatible endpoint."""

    model_name: str | None = None
    """Name to ask an endpoint for; None takes the only one that it has."""

    prompt: str = "auto"
    """`nano` (bash alone, one line of system text) or `general`; `auto` goes by the model."""

    backend: str = "container"
    image: str = "host"

    temperature: float | None = None
    """None: 0 for a model that runs here, the endpoint's own default elsewhere."""

    seed: int | None = None
    """None: 0 for a model that runs here, not sent elsewhere."""

    limits: Limits = field(default_factory=Limits)

    def __post_init__(self) -> None:
        if not self.question.strip():
            raise ConfigError("the question is empty", remedy='ask something: baleen run "..."')
        if not _is_text(self.question):
            raise ConfigError("the question is not UTF-8 text", remedy="check your terminal")
        _check_backend(self.backend)
        if self.mount_mode not in MODES:
            raise ConfigError(f"mount_mode is {self.mount_mode!r}", remedy="use ro or rw")
        if self.mount is not None and not Path(self.mount).is_dir():
            raise ConfigError(f"{self.mount} is not a folder", remedy="--mount takes a folder")
        if self.temperature is not None and not self.temperature >= 0:
            raise ConfigError(f"temperature is {self.temperature}", remedy="give 0 or more")

    @property
    def is_remote(self) -> bool:
        """The model is behind HTTP."""
        return self.model.startswith(("http://", "https://"))

    def to_json(self) -> dict[str, Any]:
        """Plain values, as config.json holds them."""
        return asdict(self)

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> RunConfig:
        """The inverse of `to_json`.

        Raises:
            ConfigError: a key is unknown; the message holds the nearest one.
        """
        check_keys(values, [f.name for f in fields(cls)])
        rest = dict(values)
        limits = rest.pop("limits", {})
        check_keys(limits, [f.name for f in fields(Limits)])
        return cls(**rest, limits=Limits(**limits))


def _is_text(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def _check_backend(name: str) -> None:
    from baleen.sandbox.spec import BACKENDS

    if name not in BACKENDS:
        near = nearest(name, BACKENDS)
        remedy = f"did you mean {near}?" if near else f"there are: {', '.join(BACKENDS)}"
        raise ConfigError(f"there is no backend {name!r}", remedy=remedy)


def check_keys(values: Iterable[str], known: Iterable[str]) -> None:
    """Refuse a key that does not exist, with the name it may have been meant for.

    Raises:
        ConfigError: there is one.
    """
    names = list(known)
    for key in values:
        if key not in names:
            near = nearest(key, names)
            remedy = f"did you mean {near}?" if near else f"known keys: {', '.join(names)}"
            raise ConfigError(f"unknown configuration key {key!r}", remedy=remedy)


def nearest(name: str, names: Iterable[str]) -> str | None:
    """The name most like this one, if any is like it at all."""
    from difflib import get_close_matches

    close = get_close_matches(name, list(names), n=1, cutoff=0.5)
    return close[0] if close else None
