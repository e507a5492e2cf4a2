"""Runs inside a function box: a Python process that has the next call's process forked already.

Standard library only, and sent into the box as source text: nothing of baleen is there. It takes
commands over standard input the way the native spawner does: a frame (skipped, the call itself
comes through the command's own standard input) with four descriptors, stdin, stdout, stderr and
status. Each command gets a process of its own and a supervisor that adopts what the call leaves
behind and reports to the status pipe: its own process id, the call's, the call's wait status
(``native/box/src/exec.rs`` says how).
Forking an interpreter costs a millisecond, so both wait ahead of time for the call's descriptors;
they serve one call. The result leaves on stdout as JSON; whatever the call prints goes to stderr.
"""

import base64
import contextlib
import ctypes
import gc
import importlib
import json
import marshal
import os
import pickle
import signal
import socket
import struct
import sys
import traceback
import types
from typing import Any

PR_SET_CHILD_SUBREAPER = 36
TELLS_SUPERVISOR, TELLS_COMMAND, TELLS_STATUS = range(3)
_libc = ctypes.CDLL(None, use_errno=True)


def main() -> None:
    """Hands each command to the processes that wait for it, until the box closes the socket."""
    sys.path[:] = json.loads(sys.argv[1])
    inbox = socket.socket(fileno=os.dup(0))
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)
    gc.freeze()  # a collection in a child would copy every page that it looks at
    pair = Pair(inbox)
    while True:
        head, fds = _receive(inbox)
        if len(fds) != 4:
            return
        _skip(inbox, struct.unpack_from("<I", head)[0] + 8 - len(head))
        if not pair.take(fds):  # somebody in the box has killed it
            pair = Pair(inbox)
            pair.take(fds)
        for fd in fds:
            os.close(fd)
        pair = Pair(inbox)


class Pair:
    """A supervisor and the process of one call, both waiting for their descriptors."""

    def __init__(self, inbox: socket.socket) -> None:
        self._supervisor, supervisor = socket.socketpair()
        self._call, call = socket.socketpair()
        if os.fork() == 0:
            for ours in (inbox, self._supervisor, self._call):
                ours.close()
            _supervise(supervisor, call)
        supervisor.close()
        call.close()

    def take(self, fds: "list[int]") -> bool:
        """Gives both what they wait for; False where one of them is gone: nothing was begun.

        The supervisor goes first: from then on the end of the call is reported, come what may.
        """
        try:
            if not (_waits(self._supervisor) and _waits(self._call)):
                return False
            try:
                socket.send_fds(self._supervisor, [b"c"], fds[3:])
            except OSError:
                return False
            with contextlib.suppress(OSError):
                socket.send_fds(self._call, [b"c"], fds[:3])
            return True
        finally:
            self._call.close()
            self._supervisor.close()


def _waits(end: socket.socket) -> bool:
    """Whether the process at the other end lives."""
    try:
        end.recv(1, socket.MSG_DONTWAIT)
    except BlockingIOError:
        return True
    except OSError:
        pass
    return False


def _receive(inbox: socket.socket) -> "tuple[bytes, list[int]]":
    head, fds, _, _ = socket.recv_fds(inbox, 8, 4)
    while 0 < len(head) < 8:
        more = inbox.recv(8 - len(head))
        if not more:
            return b"", []
        head += more
    return head, fds


def _skip(inbox: socket.socket, count: int) -> None:
    while count > 0:
        part = inbox.recv(min(count, 65536))
        if not part:
            return
        count -= len(part)


def _supervise(inbox: socket.socket, call: socket.socket) -> None:
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    _libc.prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
    pid = os.fork()
    if pid == 0:
        inbox.close()
        _become_call(call)
    call.close()
    _, fds, _, _ = socket.recv_fds(inbox, 1, 1)
    if not fds:
        os._exit(0)
    (status,) = fds
    for fd in (inbox.fileno(), 0, 1, 2):
        os.close(fd)
    os.write(status, struct.pack("<iiii", TELLS_SUPERVISOR, os.getpid(), TELLS_COMMAND, pid))
    while True:
        try:
            ended, code = os.wait()
        except ChildProcessError:
            os._exit(0)
        if ended == pid:
            os.write(status, struct.pack("<ii", TELLS_STATUS, code))


def _become_call(inbox: socket.socket) -> None:
    code = 1
    try:
        _, fds, _, _ = socket.recv_fds(inbox, 1, 3)
        inbox.close()
        if len(fds) != 3:
            return
        stdin, stdout, stderr = fds
        os.setsid()
        _take_ordinary_turns()
        os.dup2(stderr, 1)
        os.dup2(stderr, 2)
        os.close(stderr)
        with os.fdopen(stdin, "rb") as pipe:
            call = pipe.read()
        answer = _answer(call)
        code = 0
        with os.fdopen(stdout, "wb") as pipe:
            pipe.write(json.dumps(answer).encode())
    finally:
        for stream in (sys.stdout, sys.stderr):
            stream.flush()
        os._exit(code)


def _take_ordinary_turns() -> None:
    """The worker inherits short turns of the processor from the edge; calls do not."""
    number = {"x86_64": 314, "aarch64": 274}.get(os.uname().machine)
    if number is not None and os.sched_getscheduler(0) == os.SCHED_OTHER:
        nice = os.getpriority(os.PRIO_PROCESS, 0)
        _libc.syscall(number, 0, struct.pack("<IIQiIQQQ", 48, 0, 0, nice, 0, 0, 0, 0), 0)


def _answer(call: bytes) -> "dict[str, object]":
    try:
        function, arguments, options = pickle.loads(call)
        return {"value": _plain(_function(function)(*arguments, **options))}
    except BaseException as error:
        sys.stdout.flush()
        traceback.print_exc()
        return {"error": type(error).__name__, "text": str(error)}


def _function(packed: Any) -> Any:
    """Rebuilds a function that the caller took apart; see ``call.py``."""
    kind, *parts = packed
    if kind == "module":
        return importlib.import_module(parts[0])
    if kind == "value":
        return parts[0]
    name, code, defaults, keyword_defaults, cells, names = parts
    scope = {"__name__": "__call__", "__builtins__": __builtins__}
    scope.update((key, _function(part)) for key, part in names.items() if part != ("self",))
    closure = tuple(types.CellType(_function(cell)) for cell in cells)
    function = types.FunctionType(marshal.loads(code), scope, name, defaults, closure)
    function.__kwdefaults__ = keyword_defaults
    scope.update((key, function) for key, part in names.items() if part == ("self",))
    return function


def _plain(value: object) -> object:
    """Turns a result into JSON's types; what JSON lacks becomes a marked list."""
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    if isinstance(value, (bytes, bytearray)):
        return {"bytes": base64.b64encode(value).decode()}
    if isinstance(value, (list, tuple)):
        return {type(value).__name__: [_plain(item) for item in value]}
    if isinstance(value, dict):
        return {"dict": [[_plain(key), _plain(item)] for key, item in value.items()]}
    raise TypeError(f"a call may return plain data, not {type(value).__name__}")


if __name__ == "__main__":
    main()
