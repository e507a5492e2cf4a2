"""What a build may be told beside its Dockerfile."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from ..limits import Limits


@dataclass(frozen=True)
class Options:
    """What a build may be told beside its Dockerfile."""

    build_args: Mapping[str, str] = field(default_factory=dict)
    target: str | None = None
    """The stage to build; the last one by default."""
    use_cache: bool = True
    network: str = "none"
    """Of the boxes that RUN steps get."""
    cpu: float = 2.0
    memory_mb: int = 2048
    disk_mb: int = 8192
    step_timeout_s: float | None = None
    may_pull: bool = True
    """Bases that are not here are pulled."""
    limits: Limits = field(default_factory=Limits)
