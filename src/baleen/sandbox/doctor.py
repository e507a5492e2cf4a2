"""What this host can do for boxes: one line per right or feature, with a remedy if missing."""

from __future__ import annotations

import os
import platform
import shutil
import sys
from pathlib import Path
from typing import NamedTuple

from baleen.errors import SandboxError

from .backends import probe
from .binary import box_binary
from .cgroups import NEEDED, own_paths
from .errors import HostError
from .home import Home
from .images.resolve import MountBy, mount_by
from .switches import Switches
from .volatile import places

LEAST_FREE_MB = 512


class Check(NamedTuple):
    """One finding."""

    name: str
    ok: bool
    detail: str
    remedy: str | None


_REMEDIES = {
    "privileged": "not needed; as root boxes have 65536 ids of their own and all limits",
    "user_namespace": "sysctl kernel.unprivileged_userns_clone=1, user.max_user_namespaces > 0",
    "namespaces": "run as root, or allow unprivileged user namespaces",
    "mounts": "run as root, or allow mounts in user namespaces (AppArmor, container profile)",
    "idmap": "not needed; with it (root, Linux 5.12) root of a box can change every file it sees",
    "overlay": "modprobe overlay; ordinary users need Linux 5.11",
    "proc": "unmask /proc in the outer container (docker: systempaths=unconfined)",
    "landlock": "not needed; Linux 5.13 or newer with lsm=landlock",
    "erofs_file": "not needed; Linux 6.12 or newer mounts image layers without loop devices",
    "erofs_loop": "modprobe erofs loop; without it image layers are unpacked into folders",
}
"""What to do about a probe that fails, for every name that the binary's `probe` prints."""


def checks() -> list[Check]:
    """Looks at this host; changes nothing on it."""
    found = [_linux()]
    if not found[0].ok:
        return found
    found.append(_binary())
    if found[1].ok:
        found += _probed()
    found += [_controllers(), _erofs(), _seccomp(), _kvm(), _disk()]
    return [*found, _used(found)]


def _linux() -> Check:
    ok = sys.platform == "linux"
    return Check(
        "linux",
        ok,
        f"{platform.system()} {platform.release()}",
        None if ok else "run on a Linux host or VM",
    )


def _binary() -> Check:
    try:
        return Check("binary", True, str(box_binary()), None)
    except HostError as error:
        return Check("binary", False, error.message, error.remedy)


def _probed() -> list[Check]:
    try:
        answers = probe()
    except (HostError, OSError) as error:
        return [Check("probe", False, str(error), "run the binary's `probe` by hand")]
    found = ((name, answer, _REMEDIES[name]) for name, answer in answers.items())
    return [
        Check(name, answer == "ok", answer, None if answer == "ok" else remedy)
        for name, answer, remedy in found
    ]


def _controllers() -> Check:
    root = Path("/sys/fs/cgroup")
    own = own_paths(Path("/proc/self/cgroup").read_text())
    v1 = [c for c in NEEDED if (root / c / "cgroup.procs").exists()]
    if v1:
        places = {c: root / c / own.get(c, "/").lstrip("/") for c in NEEDED}
        return _controller_check(1, [c for c in NEEDED if not os.access(places[c], os.W_OK)])
    listed = root / own.get("", "/").lstrip("/") / "cgroup.controllers"
    offered = listed.read_text().split() if listed.exists() else []
    writable = os.access(listed.parent, os.W_OK)
    return _controller_check(2, [c for c in NEEDED if c not in offered or not writable])


def _controller_check(version: int, missing: list[str]) -> Check:
    if not missing:
        return Check("cgroups", True, f"v{version}: {', '.join(NEEDED)}", None)
    remedy = "mount or delegate them; BALEEN_SANDBOX_LIMITS=off runs without limits"
    return Check(
        "cgroups", False, f"v{version}: {', '.join(missing)} not usable by this user", remedy
    )


def _erofs() -> Check:
    ok = "erofs" in Path("/proc/filesystems").read_text().split()
    return Check(
        "erofs",
        ok,
        "image layers" if ok else "not in /proc/filesystems",
        None if ok else "modprobe erofs",
    )


def _seccomp() -> Check:
    ok = Path("/proc/sys/kernel/seccomp/actions_avail").exists()
    return Check(
        "seccomp", ok, "system call filter", None if ok else "a kernel with CONFIG_SECCOMP_FILTER"
    )


def _kvm() -> Check:
    ok = os.access("/dev/kvm", os.R_OK | os.W_OK)
    detail = (
        "/dev/kvm opens (no proof that guests run fast)" if ok else "/dev/kvm is not accessible"
    )
    return Check(
        "kvm", ok, detail, None if ok else "only for virtual machines: enable nested virtualisation"
    )


def _disk() -> Check:
    home = Home.default().root
    place = next(path for path in (home, *home.parents) if path.exists())
    free_mb = shutil.disk_usage(place).free >> 20
    ok = free_mb >= LEAST_FREE_MB
    return Check(
        "disk", ok, f"{free_mb} MB free at {place}", None if ok else "free space or set BALEEN_HOME"
    )


def _used(found: list[Check]) -> Check:
    needed = ("linux", "binary", "namespaces", "mounts", "overlay", "proc")
    failed = [check.name for check in found if check.name in needed and not check.ok]
    if failed:
        return Check("will use", False, f"no sandbox: {', '.join(failed)}", "see above")
    try:
        return Check(
            "will use", True, ", ".join(_ways({check.name: check for check in found})), None
        )
    except SandboxError as error:  # a switch has a value that there is not
        return Check("will use", False, error.message, error.remedy)


def _ways(found: dict[str, Check]) -> list[str]:
    """How boxes will be made here, with what is switched off left out."""
    switches = Switches.from_environment()
    is_root = found["privileged"].ok
    has_limits = found["cgroups"].ok and switches.limits
    is_fenced = switches.landlock and found["landlock"].ok
    is_mapped = switches.idmap and is_root and found["idmap"].ok
    way = mount_by()
    if way is MountBy.AUTO:
        way = MountBy.FILE if found["erofs_file"].ok else MountBy.LOOP
    in_memory = places() if switches.volatile else []
    return [
        f"container {'as root' if is_root else 'as an ordinary user'}",
        "limits" if has_limits else "no limits",
        f"image layers by {way}",
        "files under ids of the box" if is_mapped else "files under ids of the host",
        "Landlock" if is_fenced else "no Landlock",
        f"pauses by {'freezer' if switches.freezer and has_limits else 'signals'}",
        f"box folders {f'in memory ({in_memory[0]})' if in_memory else 'on disk'}",
    ]
