"""The sandbox's core suite in a virtual machine with another kernel and cgroup v2.

    python tests/guest/check.py [--build-only] [--memory-mb 3072] [PYTEST-ARGUMENT...]

Builds a Debian 12 root file system once (its 6.1 kernel has neither file-backed EROFS mounts nor
the cgroup v1 controllers that the suite usually meets), puts this source tree into it, boots it in
QEMU and runs `pytest tests/sandbox` there as root. The guest's output is shown as it comes; the
exit code is pytest's. The guest is emulated (BALEEN_GUEST_ACCEL=kvm where KVM runs guests well).

Needs root and the Debian packages debootstrap, qemu-system-x86 and e2fsprogs.
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
import zlib
from pathlib import Path

ROOT = Path(__file__).parents[2]
CACHE = Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "baleen" / "guest"
TOOLS = {
    "debootstrap": "debootstrap",
    "qemu-system-x86_64": "qemu-system-x86",
    "mkfs.ext4": "e2fsprogs",
}
PACKAGES = "python3,kmod,iproute2,procps,erofs-utils,linux-image-cloud-amd64,initramfs-tools"
PYTHON_PACKAGES = ("pytest", "pytest-asyncio", "pytest-timeout", "hypothesis")
RUNTIME = ("click", "httpx", "msgpack", "platformdirs", "rich", "zstandard")
LEFT_OUT = (
    "images/dockerfile/test_words.py",
    "images/test_gc.py::test_creates_beside_collections_have_their_layers_or_fail_before",
    "images/test_importing.py",
    "images/test_pulling.py",
    "images/test_tarball.py",
    "test_call.py::test_a_call_that_runs_too_long_is_killed_with_its_children",
    "test_exactly_once.py::test_kills_at_random_moments_leave_every_command_run_exactly_once",
    "test_exactly_once.py::test_recorded_results_outlive_the_box",
    "test_misbehaviour.py::test_gigabytes_of_output_take_no_memory_of_the_host",
    "test_remote.py::test_a_command_that_cannot_be_right_is_refused_and_harms_no_box",
    "test_terminal_and_ports.py::test_a_command_on_a_terminal_sees_its_size_and_resizing",
    "test_trajectory.py",
)
"""They count seconds that emulation stretches, and nothing in them depends on the kernel."""

SOURCES = ("src", "tests", "benchmarks", "docs", "pyproject.toml", "README.md")
DONE = "guest-check: exit code "
INIT = """#!/bin/sh
mount -t proc proc /proc 2>/dev/null
mount -t sysfs sysfs /sys 2>/dev/null
mount -t devtmpfs devtmpfs /dev 2>/dev/null
mkdir -p /dev/pts /dev/shm
mount -t devpts devpts /dev/pts
mount -t tmpfs tmpfs /dev/shm
mount -t tmpfs tmpfs /run
mount -t cgroup2 cgroup2 /sys/fs/cgroup
mkdir /sys/fs/cgroup/check
echo $$ > /sys/fs/cgroup/check/cgroup.procs
modprobe -a overlay erofs loop
ip link set lo up
hostname guest
export HOME=/root PATH=/usr/local/bin:/usr/bin:/bin:/usr/sbin:/sbin LANG=C.UTF-8
export PYTHONPATH=/baleen/src PYTHONDONTWRITEBYTECODE=1 BALEEN_SANDBOX_START_TIMEOUT_S=120
cd /baleen
echo "guest: Linux $(uname -r), cgroup v2 with $(cat /sys/fs/cgroup/cgroup.controllers)"
sh /arguments
echo "DONE$?"
sync
echo o > /proc/sysrq-trigger
sleep 60
""".replace("DONE", DONE)


def require_tools() -> None:
    missing = [package for tool, package in TOOLS.items() if not shutil.which(tool)]
    if missing:
        sys.exit(f"guest check: missing {', '.join(missing)} (apt-get install {' '.join(missing)})")
    if os.geteuid() != 0:
        sys.exit("guest check: building the root file system needs root")


def base_root() -> Path:
    """A minimal Debian with kernel and Python; built once and kept."""
    root = CACHE / f"bookworm-{zlib.crc32(PACKAGES.encode()):08x}"
    if not root.exists():
        CACHE.mkdir(parents=True, exist_ok=True)
        unfinished = Path(tempfile.mkdtemp(prefix="bookworm-", dir=CACHE))
        command = ["debootstrap", "--variant=minbase", f"--include={PACKAGES}", "bookworm"]
        subprocess.run([*command, unfinished], check=True, stdout=sys.stderr)
        unfinished.rename(root)
    return root


def site_packages() -> Path:
    """What the tests import, for the guest's Python."""
    wanted = (*PYTHON_PACKAGES, *RUNTIME)
    site = CACHE / f"site-{zlib.crc32(' '.join(wanted).encode()):08x}"
    if not site.exists():
        unfinished = Path(tempfile.mkdtemp(prefix="unfinished-", dir=CACHE))
        pip = [sys.executable, "-m", "pip", "install", "-qq", "--target", unfinished]
        fit = ["--python-version", "3.11", "--only-binary=:all:", "-c", ROOT / "constraints.txt"]
        subprocess.run([*pip, *fit, *wanted], check=True)
        unfinished.rename(site)
    return site


def disk(place: Path, arguments: list[str]) -> Path:
    """The guest's root disk: base system, packages, this source tree, and what to run."""
    root = place / "root"
    subprocess.run(["cp", "-a", base_root(), root], check=True)
    packages = root / "usr/lib/python3/dist-packages"
    shutil.copytree(site_packages(), packages, symlinks=True, dirs_exist_ok=True)
    for folder in (root, packages):
        folder.chmod(0o755)  # as the folders that they were made in are not
    (root / "etc/hosts").write_text("127.0.0.1 localhost localhost.localdomain\n")
    (root / "baleen").mkdir()
    for name in SOURCES:
        source, target = ROOT / name, root / "baleen" / name
        if source.is_dir():
            shutil.copytree(source, target, ignore=shutil.ignore_patterns("__pycache__", "assets"))
        else:
            shutil.copy(source, target)
    shutil.copytree(ROOT / "src/baleen/assets/conf", root / "baleen/src/baleen/assets/conf")
    (root / "sbin/guest-check").write_text(INIT)
    (root / "sbin/guest-check").chmod(0o755)
    # Emulation stretches every wait; only a hang shall fail.
    command = ["python3", "-m", "pytest", "--color=no", "-o", "timeout=1800"]
    # The conftest above imports torch; hypothesis' plugin trips over a bug of Python 3.11.2.
    command += ["--confcutdir=tests/sandbox", "-p", "no:hypothesispytest", *arguments]
    (root / "arguments").write_text(" ".join(map(_quoted, command)) + "\n")
    image = place / "root.ext4"
    with image.open("wb") as file:
        file.truncate(3 << 30)
    subprocess.run(["mkfs.ext4", "-q", "-d", root, image], check=True)
    return image


def _quoted(word: str) -> str:
    return "'" + word.replace("'", "'\\''") + "'"


def accelerator() -> list[str]:
    """KVM only where it is asked for: the device's presence does not mean that guests run well."""
    wanted = os.environ.get("BALEEN_GUEST_ACCEL", "tcg")
    return ["-accel", "tcg,thread=multi" if wanted == "tcg" else wanted, "-cpu", "max"]


def boot(image: Path, memory_mb: int) -> int:
    """Runs the guest, passes on what it prints, and returns the exit code of its tests."""
    boot_folder = base_root() / "boot"
    kernel, initrd = (
        next(iter(boot_folder.glob(f"{name}-*"))) for name in ("vmlinuz", "initrd.img")
    )
    qemu = subprocess.Popen(
        [
            *("qemu-system-x86_64", "-M", "q35", *accelerator()),
            *("-m", str(memory_mb), "-smp", "2", "-nodefaults", "-display", "none", "-no-reboot"),
            *("-kernel", kernel, "-initrd", initrd, "-serial", "stdio"),
            *("-drive", f"file={image},format=raw,if=virtio,cache=unsafe"),
            "-append",
            "console=ttyS0 root=/dev/vda rw quiet panic=-1 no_timer_check init=/sbin/guest-check",
        ],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        text=True,
        errors="replace",
    )
    assert qemu.stdout is not None
    code = 1
    try:
        for line in qemu.stdout:
            print(line, end="", flush=True)
            if line.startswith(DONE):
                code = int(line.removeprefix(DONE))
    finally:
        qemu.terminate()
        qemu.wait()
    return code


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--build-only", action="store_true")
    parser.add_argument("--memory-mb", type=int, default=3072)
    options, arguments = parser.parse_known_args()
    require_tools()
    base_root(), site_packages()
    if options.build_only:
        return 0
    if not arguments:
        skipped = (f"--deselect=tests/sandbox/{name}" for name in LEFT_OUT)
        arguments = ["tests/sandbox", *skipped, "--ignore=tests/sandbox/adapters"]
    with tempfile.TemporaryDirectory(prefix="guest") as folder:
        return boot(disk(Path(folder), arguments), options.memory_mb)


if __name__ == "__main__":
    sys.exit(main())
