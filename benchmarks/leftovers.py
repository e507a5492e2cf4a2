"""What the boxes of one home have left on this host: processes, control groups, mounts."""

from __future__ import annotations

import contextlib
import os
import time
from pathlib import Path

from baleen.sandbox.home import Home


def leftovers(home: Home) -> dict[str, int]:
    """Counts what still exists because of this home's edge, launchers and boxes."""
    mark = f"BALEEN_HOME={home.root}\0".encode()
    processes = 0
    for folder in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            parent = int((folder / "stat").read_text().rpartition(")")[2].split()[1])
            if os.getpid() not in (int(folder.name), parent):  # not the benchmark itself
                processes += mark in (folder / "environ").read_bytes()
    groups = sum(
        len(groups)
        for folder, groups, _ in os.walk("/sys/fs/cgroup")
        if folder.endswith(home.group_name)
    )
    mounts = Path("/proc/self/mounts").read_text().count(str(home.root))
    return {"left_processes": processes, "left_groups": groups, "left_mounts": mounts}


def settled(home: Home, timeout_s: float = 30) -> dict[str, int]:
    """The leftovers once nothing is left, or when the time is over."""
    give_up_at = time.monotonic() + timeout_s
    while any((found := leftovers(home)).values()) and time.monotonic() < give_up_at:
        time.sleep(0.2)
    return found
