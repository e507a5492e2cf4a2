"""What every adapter lets its user choose about the box, and nothing else."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from typing import Any

from baleen.errors import UsageError

from ..spec import Allowlist


@dataclass(frozen=True)
class BoxOptions:
    """Arguments of :meth:`Sandbox.create`, as they come from foreign configs."""

    image: str = "host"
    workspace: str | None = None
    toolkits: tuple[str, ...] = ()
    mounts: tuple[tuple[str, str, str], ...] = ()
    cpu: float = 1.0
    memory_mb: int = 2048
    disk_mb: int = 4096
    pids: int = 512
    network: str | tuple[str, ...] = "none"
    """"none", "public", or the hosts of an allowlist."""
    ttl_idle_s: float = 3600
    job: str | None = None
    labels: Mapping[str, str] = field(default_factory=dict)

    @classmethod
    def from_data(cls, data: Mapping[str, Any]) -> BoxOptions:
        """Checks and takes a foreign config.

        Raises:
            UsageError: a name that is none of ours.
        """
        known = [item.name for item in fields(cls)]
        unknown = sorted(set(data) - set(known))
        if unknown:
            raise UsageError(
                f"unknown option {unknown[0]!r} of a box", remedy=f"there are: {', '.join(known)}"
            )
        plain: dict[str, Any] = {
            key: tuple(v) if isinstance(v, list) else v for key, v in data.items()
        }
        if "mounts" in plain:
            plain["mounts"] = tuple(tuple(mount) for mount in plain["mounts"])
        return cls(**plain)

    def arguments(self) -> dict[str, Any]:
        """Keyword arguments for :meth:`Sandbox.create`."""
        found = {item.name: getattr(self, item.name) for item in fields(self)}
        if isinstance(self.network, tuple):
            found["network"] = Allowlist(self.network)
        return found
