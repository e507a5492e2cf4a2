"""Runs inside a function box: a Python process that forks one child per call.

Standard library only, and sent into the box as source text: nothing of baleen is there. It takes
commands over standard input the way the native spawner does: a frame (skipped, the call itself
comes through the command's own standard input) with four descriptors, stdin, stdout, stderr and
status. Each command gets a supervisor that adopts what the call leaves behind and reports to the
status pipe: its own process id, the call's, the call's wait status. The result leaves on stdout as
JSON; whatever the call prints goes to stderr.
"""

import base64
import ctypes
import json
import os
import pickle
import signal
import socket
import struct
import sys
import traceback
from typing import Any

PR_SET_CHILD_SUBREAPER = 36
_libc = ctypes.CDLL(None, use_errno=True)


def main() -> None:
    """Forks a supervisor per command until the box closes the socket."""
    sys.path[:] = json.loads(sys.argv[1])
    inbox = socket.socket(fileno=os.dup(0))
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)
    while True:
        head, fds = _receive(inbox)
        if len(fds) != 4:
            return
        _skip(inbox, struct.unpack_from("<I", head)[0] + 8 - len(head))
        if os.fork() == 0:
            inbox.close()
            _supervise(*fds)
        for fd in fds:
            os.close(fd)


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


def _supervise(stdin: int, stdout: int, stderr: int, status: int) -> None:
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    _libc.prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
    pid = os.fork()
    if pid == 0:
        _become_call(stdin, stdout, stderr, status)
    for fd in (stdin, stdout, stderr, 0, 1, 2):
        os.close(fd)
    os.write(status, struct.pack("<ii", os.getpid(), pid))
    while True:
        try:
            ended, code = os.wait()
        except ChildProcessError:
            os._exit(0)
        if ended == pid:
            os.write(status, struct.pack("<i", code))


def _become_call(stdin: int, stdout: int, stderr: int, status: int) -> None:
    code = 1
    try:
        os.close(status)
        os.setsid()
        os.dup2(stderr, 1)
        os.dup2(stderr, 2)
        with os.fdopen(stdin, "rb") as pipe:
            call = pipe.read()
        os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
        answer = _answer(call)
        code = 0
        with os.fdopen(stdout, "wb") as pipe:
            pipe.write(json.dumps(answer).encode())
    finally:
        for stream in (sys.stdout, sys.stderr):
            stream.flush()
        os._exit(code)


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
    import importlib
    import marshal
    import types

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
