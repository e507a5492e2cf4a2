"""Which kinds of sandbox this host offers, and why not the others, before anything starts."""

from __future__ import annotations

import shutil
import subprocess
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path

from .binary import box_binary
from .errors import HostError, UnsupportedError
from .spec import BoxSpec

PROBE_TRIES = 3
PROBE_TIMEOUT_S = 20

NEEDED_PROBES = ("namespaces", "mounts", "overlay", "proc")


@dataclass(frozen=True)
class Backend:
    """One kind of sandbox on this host."""

    name: str
    available: bool
    reason: str
    """What it is when available; what is missing when not."""
    capabilities: dict[str, object] = field(default_factory=dict)


@lru_cache(maxsize=1)
def probe() -> dict[str, str]:
    """Tries in a throw-away process what this user may do here: name -> "ok" or the reason.

    Raises:
        HostError: not Linux, no binary, or one that fails.
    """
    command = [str(box_binary()), "probe"]
    for _ in range(PROBE_TRIES):
        try:
            done = subprocess.run(
                command, capture_output=True, text=True, timeout=PROBE_TIMEOUT_S, check=False
            )
        except subprocess.TimeoutExpired:
            raise HostError(f"{' '.join(command)} gave no answer in {PROBE_TIMEOUT_S} s") from None
        if done.returncode >= 0:
            break  # else something has killed it
    if done.returncode != 0:
        why = done.stderr.strip() or f"exit code {done.returncode}"
        raise HostError(f"{' '.join(command)} failed: {why}", remedy="run it by hand")
    return dict(line.split("=", 1) for line in done.stdout.splitlines() if "=" in line)


def is_privileged() -> bool:
    """Whether boxes get id ranges of their own; otherwise they map only the caller."""
    return probe().get("privileged") == "ok"


def backends() -> list[Backend]:
    """Every backend with what it offers here or why it is not offered."""
    container = _container()
    return [
        _function(container),
        container,
        _by_program("gvisor", "runsc"),
        _by_program("microvm", "firecracker", "/dev/kvm"),
        _by_program("vm", "qemu-system-x86_64"),
    ]


def _container() -> Backend:
    try:
        answers = probe()
    except (HostError, OSError) as error:
        return Backend("container", False, str(error))
    failed = [
        f"{name}: {answers.get(name, 'not probed')}"
        for name in NEEDED_PROBES
        if answers.get(name) != "ok"
    ]
    if failed:
        return Backend("container", False, "; ".join(failed))
    root = is_privileged()
    capabilities: dict[str, object] = {
        "privileged": root,
        "users": "65536 ids of its own" if root else "one id: the caller's",
        "network": ["none", "public", "allowlist"],
        "images": ["host", "directory", "store"],
        "image_mounts": [way for way in ("file", "loop") if answers.get(f"erofs_{way}") == "ok"],
        "landlock": answers.get("landlock") == "ok",
        "idmap": answers.get("idmap") == "ok",
        "disk": "tmpfs of disk_mb; what is written counts as memory of the box",
        "mounts": ["ro", "rw"],
        "streams": True,
        "pty": True,
        "ports": True,
        "snapshot": True,
        "fork": True,
        "pause": True,
    }
    return Backend(
        "container", True, "own launcher: namespaces, overlay, seccomp, cgroups", capabilities
    )


def _function(container: Backend) -> Backend:
    if not container.available:
        return Backend("function", False, container.reason)
    reason = "a container whose Python interpreter forks a child per call"
    return Backend("function", True, reason, {**container.capabilities, "calls": True})


def _by_program(name: str, program: str, device: str | None = None) -> Backend:
    if shutil.which(program) is None:
        return Backend(
            name, False, f"{program} is not installed, and its driver is not available yet"
        )
    if device is not None and not Path(device).exists():
        return Backend(name, False, f"{device} does not exist")
    return Backend(name, False, f"{program} is here, its driver is not available yet")


def check_offered(spec: BoxSpec) -> None:
    """Refuses what this host or version does not offer.

    Raises:
        UnsupportedError: a backend that is not available, with the reason.
        HostError: containers cannot run on this host.
    """
    if spec.backend not in ("container", "function"):
        chosen = next(backend for backend in backends() if backend.name == spec.backend)
        raise UnsupportedError(
            f"backend {spec.backend!r}: {chosen.reason}", remedy='use backend="container"'
        )
    container = _container()
    if not container.available:
        raise HostError(
            f"this host cannot run containers: {container.reason}",
            remedy="run as root, or allow unprivileged user namespaces; see `baleen doctor`",
        )
