"""Short turns of the processor for the processes between a caller and his command.

A command passes five processes that each work for some microseconds. On a host whose processors are
all taken, the kernel lets who runs finish a turn of some milliseconds before it looks at a process
that was just forked; who asks for shorter turns than that is let in at once. Shares stay as they
are: short turns come more often and are over sooner. Commands themselves get ordinary turns
(``native/box/src/turns.rs``). Linux 6.12 and newer; older kernels ignore it.
"""

from __future__ import annotations

import ctypes
import os
import struct

SHORT_NS = 100_000
"""The shortest that the kernel grants."""

_ATTRIBUTES = struct.Struct("<IIQiIQQQ")  # size, policy, flags, nice, priority, three times in ns
_NUMBERS = {"x86_64": (314, 315), "aarch64": (274, 275)}
_ORDINARY_POLICY = 0


def turn_ns(pid: int = 0) -> int | None:
    """How long a turn a process has; None where the kernel does not say."""
    attributes = _attributes(pid)
    return attributes[5] or None if attributes is not None else None


def take_short_turns() -> None:
    """Asks for short turns, for this process and those that it will start."""
    attributes = _attributes(0)
    if attributes is None or attributes[1] != _ORDINARY_POLICY:
        return  # somebody has chosen otherwise for this edge
    nice = attributes[3]
    buffer = _ATTRIBUTES.pack(_ATTRIBUTES.size, _ORDINARY_POLICY, 0, nice, 0, SHORT_NS, 0, 0)
    _call(0, 0, buffer, 0)


def _attributes(pid: int) -> tuple[int, ...] | None:
    buffer = ctypes.create_string_buffer(_ATTRIBUTES.size)
    if _call(1, pid, buffer, _ATTRIBUTES.size, 0) != 0:
        return None
    return _ATTRIBUTES.unpack(buffer.raw)


def _call(which: int, *arguments: object) -> int:
    """sched_setattr (0) or sched_getattr (1), for which the C library has no names."""
    numbers = _NUMBERS.get(os.uname().machine)
    if numbers is None:
        return -1
    result: int = ctypes.CDLL(None).syscall(numbers[which], *arguments)
    return result
