"""The image ``host``: a view of an allow-list of this host.

``/usr`` and the library and program folders are this host's, under a synthetic ``/etc``.
"""

from __future__ import annotations

import hashlib
import shutil
import tempfile
import time
from functools import lru_cache
from pathlib import Path

from ..home import Home
from .base import Image, Overlay, Rootfs

_SHARED = ("usr", "bin", "sbin", "lib", "lib32", "lib64", "libx32")
_EMPTY = (
    "root",
    "home",
    "tmp",
    "var",
    "var/tmp",
    "var/lib",
    "var/log",
    "var/cache",
    "run",
    "proc",
    "sys",
)
_EMPTY_TOO = ("dev", "opt", "srv", "mnt", "etc", "etc/ssl", "etc/ssl/certs")
_COPIED = (
    "etc/ld.so.cache",
    "etc/ld.so.conf",
    "etc/ssl/certs/ca-certificates.crt",
    "etc/os-release",
)
_SKELETON_VERSION = "1"
HOST_CHECK_S = 10

_ETC = {
    "passwd": "root:x:0:0:root:/root:/bin/sh\n"
    "daemon:x:1:1:daemon:/usr/sbin:/usr/sbin/nologin\n"
    "user:x:1000:1000:user:/home/user:/bin/sh\n"
    "nobody:x:65534:65534:nobody:/nonexistent:/usr/sbin/nologin\n",
    "group": "root:x:0:\ndaemon:x:1:\ntty:x:5:\nuser:x:1000:\nnogroup:x:65534:\n",
    "hosts": "127.0.0.1 localhost\n::1 localhost\n",
    "nsswitch.conf": "passwd: files\ngroup: files\nhosts: files dns\n",
    "resolv.conf": "",
    "shells": "/bin/sh\n/bin/bash\n",
}


def host_overlays(home: Home) -> list[Overlay]:
    """The host's overlays, looked at anew every :data:`HOST_CHECK_S`."""
    return _host_overlays(home, int(time.monotonic() / HOST_CHECK_S))


def host_rootfs(home: Home) -> Rootfs:
    """What a box of image ``host`` is launched with."""
    return _host_rootfs(home, int(time.monotonic() / HOST_CHECK_S))


@lru_cache(maxsize=4)
def _host_rootfs(home: Home, period: int) -> Rootfs:
    return Rootfs(tuple(_host_overlays(home, period)), image=Image(base="host"))


@lru_cache(maxsize=4)
def _host_overlays(home: Home, period: int) -> list[Overlay]:
    skeleton = _host_skeleton(home)
    folders = [
        f"/{name}"
        for name in _SHARED
        if Path(f"/{name}").is_dir() and not Path(f"/{name}").is_symlink()
    ]
    return [Overlay("/", (str(skeleton),)), *(Overlay(folder, (folder,)) for folder in folders)]


def _host_skeleton(home: Home) -> Path:
    """The root folder of ``host`` without the shared parts; made once per state of the host."""
    skeleton = home.images / f"host-{_host_digest()}"
    if skeleton.exists():
        return skeleton
    partial = Path(tempfile.mkdtemp(prefix="host-", dir=home.images))
    _fill(partial)
    partial.chmod(0o755)
    try:
        partial.rename(skeleton)
    except OSError:  # another process of this user was faster
        shutil.rmtree(partial)
    return skeleton


def _host_digest() -> str:
    parts = [_SKELETON_VERSION]
    for name in (*_COPIED, "etc/alternatives"):
        path = Path("/", name)
        parts.append(f"{name} {path.stat().st_mtime_ns if path.exists() else 0}")
    parts += [f"{name} {Path('/', name).is_symlink()}" for name in _SHARED]
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()[:16]


def _fill(root: Path) -> None:
    for name in (*_EMPTY, *_EMPTY_TOO):
        (root / name).mkdir(mode=0o755)
    for name in ("tmp", "var/tmp"):
        (root / name).chmod(0o1777)
    (root / "root").chmod(0o700)
    for name in _SHARED:
        host = Path("/", name)
        if host.is_symlink():
            (root / name).symlink_to(host.readlink())
    for name, text in _ETC.items():
        (root / "etc" / name).write_text(text)
    for name in _COPIED:
        if Path("/", name).is_file():
            shutil.copyfile(Path("/", name), root / name)
    # Debian's program names (awk, editor, java) lead through this folder of links.
    if Path("/etc/alternatives").is_dir():
        shutil.copytree("/etc/alternatives", root / "etc/alternatives", symlinks=True)
