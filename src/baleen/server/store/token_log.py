"""The token write-ahead log: every sampled token is in a file before a client sees it.

A gateway that is killed loses nothing that was sampled: the next one reads what it left, and a
request that comes again goes on from the recorded tokens by computing the prompt and them anew.
Requests are recognised by an idempotency key if they bring one, else by their prompt and sampling.

One file per process, `tokens-<16 hex digits>.log`, held by a lock while its writer lives. Layout,
little-endian: 8 bytes of magic (`BLNTOK`, a zero byte, the version), then frames of

    u32 body length | u32 CRC-32 of the body | u8 kind | u32 answer | rest of the body

The kinds are BEGIN (JSON: key, digest, prompt_tokens, place, at), TOKENS (u32 ids, then as many
f32 log-probabilities or none), CUT (u32: tokens that stay) and END (JSON: finish, call ids).

Bytes are handed to the kernel at once, which is enough to survive the death of the process. A torn
tail is ignored. When the file has grown, the answers still in progress move to a new one, with the
finished ones that have an idempotency key and are recent.
"""

from __future__ import annotations

import fcntl
import json
import logging
import os
import secrets
import struct
import time
from array import array
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final
from zlib import crc32

from baleen.server.errors import TokenLogError

VERSION: Final = 1
_log = logging.getLogger(__name__)
MAGIC: Final = b"BLNTOK\x00" + bytes([VERSION])
_HEAD: Final = struct.Struct("<IIBI")
_FRAME: Final = struct.Struct("<II")
_KIND: Final = struct.Struct("<BI")
_ONE: Final = struct.Struct("<BIII")
"""A single token without log-probability, which is what most frames hold."""
_BEGIN, _TOKENS, _END, _CUT = 1, 2, 3, 4
_MAX_FILE_BYTES: Final = 64 << 20
_MAX_BODY_BYTES: Final = 1 << 26
_MAX_KEPT: Final = 1_024
"""Finished answers that an idempotency key may still ask for."""


@dataclass(slots=True)
class Recorded:
    """One answer as the log has it."""

    number: int
    about: dict[str, Any]
    ids: list[int] = field(default_factory=list)
    logprobs: list[float] = field(default_factory=list)
    end: dict[str, Any] | None = None
    """None while it is not finished."""

    @property
    def is_wanted(self) -> bool:
        """Whether somebody may still ask for it."""
        if self.end is None:
            return True
        return bool(self.about.get("named")) and self.end["finish"] != "dropped"

    @property
    def key(self) -> str:
        """By what the request is recognised."""
        return str(self.about["key"])


class TokenLog:
    """The log of one gateway process, and what dead processes left behind."""

    def __init__(self, folder: Path, max_file_bytes: int = _MAX_FILE_BYTES) -> None:
        self._folder, self._max_bytes = folder, max_file_bytes
        folder.mkdir(parents=True, exist_ok=True)
        self._open: dict[int, Recorded] = {}
        self._known: dict[str, Recorded] = {}
        self._refused: set[Path] = set()
        """Files of another kind or version, which are looked at once."""
        self._next = 0
        self._descriptor = -1
        self._size = 0
        self._start_file()
        self._adopt()

    # --- writing -------------------------------------------------------------------------------

    def begin(self, about: Mapping[str, Any]) -> Recorded:
        """Open the record of an answer; `about` has at least `key` and `digest`.

        Raises:
            OSError: the disk is full or the file is gone.
        """
        record = Recorded(self._next, dict(about))
        self._next += 1
        self._append(_BEGIN, record.number, json.dumps(record.about).encode())
        self._open[record.number] = record
        return record

    def append(self, record: Recorded, ids: Sequence[int], logprobs: Sequence[float]) -> None:
        """Write down some more tokens; they are in the file when this returns.

        Raises:
            OSError: the disk is full or the file is gone.
        """
        if len(ids) == 1 and not logprobs:
            rest = _ONE.pack(_TOKENS, record.number, 1, ids[0])
            self._write(_FRAME.pack(_ONE.size, crc32(rest)) + rest)
            record.ids.append(ids[0])
        else:
            self._append(_TOKENS, record.number, _pack(ids, logprobs))
            record.ids += ids
            record.logprobs += logprobs

    def cut(self, record: Recorded, num_tokens: int) -> None:
        """Take tokens back: only the first ones stay.

        Raises:
            OSError: the disk is full or the file is gone.
        """
        self._append(_CUT, record.number, struct.pack("<I", num_tokens))
        _cut(record, num_tokens)

    def park(self, record: Recorded) -> None:
        """An answer broke off; whoever asks for it again goes on from its tokens."""
        self._open.pop(record.number, None)
        self._keep(record)

    def is_open(self, key: str) -> bool:
        """Whether an answer under this key is being given right now."""
        return any(record.key == key for record in self._open.values())

    def end(self, record: Recorded, how: Mapping[str, Any]) -> None:
        """Close the record of an answer.

        Raises:
            OSError: the disk is full or the file is gone.
        """
        record.end = dict(how)
        self._open.pop(record.number, None)
        if record.about.get("named"):
            self._keep(record)
        self._append(_END, record.number, json.dumps(record.end).encode())
        if self._size > self._max_bytes:
            self._roll()

    def forget(self, record: Recorded) -> None:
        """Drop an answer that nobody will ask for again."""
        self._open.pop(record.number, None)
        with suppress(OSError):
            self._append(_END, record.number, b'{"finish": "dropped"}')
        record.end = {"finish": "dropped"}

    def _append(self, kind: int, number: int, body: bytes) -> None:
        rest = _KIND.pack(kind, number) + body
        self._write(_FRAME.pack(len(rest), crc32(rest)) + rest)

    def _write(self, data: bytes) -> None:
        written = os.write(self._descriptor, data)
        if written != len(data):
            os.ftruncate(self._descriptor, self._size)
            raise OSError(28, "No space left on device", str(self._path))
        self._size += written

    def _keep(self, record: Recorded) -> None:
        self._known[record.key] = record
        while len(self._known) > _MAX_KEPT:
            self._known.pop(next(iter(self._known)))

    # --- reading -------------------------------------------------------------------------------

    def find(self, key: str) -> Recorded | None:
        """What is recorded under a key: unfinished from a dead process, or finished and named.

        A process may have died since this one has begun, so its file is looked for as well.
        """
        known = self._known.get(key)
        if known is None:
            try:
                self._adopt()
            except (OSError, TokenLogError) as error:
                _log.warning("a token log of another process is left alone: %s", error)
            known = self._known.get(key)
        return known

    def take(self, record: Recorded) -> None:
        """An unfinished answer is being continued here; nobody else is given it."""
        self._known.pop(record.key, None)
        self._open[record.number] = record

    @property
    def num_unfinished(self) -> int:
        """Answers of dead processes that were not asked for yet."""
        return sum(record.end is None for record in self._known.values())

    def close(self) -> None:
        """Let go of the file; it goes if nothing in it is needed."""
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1
            if not (self._open or self._known):
                self._path.unlink(missing_ok=True)

    # --- files ---------------------------------------------------------------------------------

    def _start_file(self) -> None:
        # Others see it under its name only once it is locked; till then it would look abandoned.
        self._path = self._folder / f"tokens-{secrets.token_hex(8)}.log"
        unlocked = self._path.with_suffix(".new")
        flags = os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_APPEND | os.O_CLOEXEC
        self._descriptor = os.open(unlocked, flags, 0o600)
        fcntl.flock(self._descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        os.write(self._descriptor, MAGIC)
        unlocked.rename(self._path)
        self._size = len(MAGIC)

    def _adopt(self) -> None:
        """Take over what processes left that are no more."""
        own = self._path.name
        with os.scandir(self._folder) as entries:
            names = sorted(e.name for e in entries if e.name.endswith(".log") and e.name != own)
        for name in names:
            path = self._folder / name
            if path in self._refused:
                continue
            try:
                descriptor = os.open(path, os.O_RDWR | os.O_CLOEXEC)
            except FileNotFoundError:
                continue
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                self._take_over(path)
            except BlockingIOError:
                continue
            except TokenLogError:
                self._refused.add(path)
                raise
            finally:
                os.close(descriptor)

    def _take_over(self, path: Path) -> None:
        for record in scan(path):
            if record.is_wanted:
                record.number = self._next
                self._next += 1
                self._write_whole(record)
                self._keep(record)
        path.unlink(missing_ok=True)

    def _write_whole(self, record: Recorded) -> None:
        self._append(_BEGIN, record.number, json.dumps(record.about).encode())
        self._append(_TOKENS, record.number, _pack(record.ids, record.logprobs))
        if record.end is not None:
            self._append(_END, record.number, json.dumps(record.end).encode())

    def _roll(self) -> None:
        old_path, old_descriptor = self._path, self._descriptor
        self._start_file()
        for record in (*self._known.values(), *self._open.values()):
            self._write_whole(record)
        self._max_bytes = max(self._max_bytes, 2 * self._size)
        os.close(old_descriptor)
        old_path.unlink(missing_ok=True)


def scan(path: Path) -> list[Recorded]:
    """The answers in a log, in order; a torn tail is left out.

    Raises:
        TokenLogError: the file is of another kind or version.
    """
    data = path.read_bytes()
    if len(data) < len(MAGIC):
        return []
    if data[: len(MAGIC)] != MAGIC:
        raise TokenLogError(
            f"{path} is no token log of version {VERSION}",
            remedy="move the file away; answers cut off in it are sampled anew",
        )
    records: dict[int, Recorded] = {}
    for kind, number, body in _frames(data):
        if kind == _BEGIN:
            records[number] = Recorded(number, json.loads(body))
        elif number in records and kind == _TOKENS:
            ids, logprobs = _unpack(body)
            records[number].ids += ids
            records[number].logprobs += logprobs
        elif number in records and kind == _CUT:
            _cut(records[number], struct.unpack("<I", body)[0])
        elif number in records:
            records[number].end = json.loads(body)
    return list(records.values())


def _frames(data: bytes) -> Iterator[tuple[int, int, bytes]]:
    offset = len(MAGIC)
    while offset + _HEAD.size <= len(data):
        length, crc, kind, number = _HEAD.unpack_from(data, offset)
        end = offset + 8 + length
        if length > _MAX_BODY_BYTES or end > len(data):
            return
        if crc32(memoryview(data)[offset + 8 : end]) != crc:
            return
        yield kind, number, data[offset + _HEAD.size : end]
        offset = end


def _cut(record: Recorded, num_tokens: int) -> None:
    del record.ids[num_tokens:]
    del record.logprobs[num_tokens:]


def _pack(ids: Sequence[int], logprobs: Sequence[float]) -> bytes:
    count = struct.pack("<I", len(ids))
    return count + array("I", ids).tobytes() + array("f", logprobs).tobytes()


def _unpack(body: bytes) -> tuple[list[int], list[float]]:
    (count,) = struct.unpack_from("<I", body)
    ids, logprobs = array("I"), array("f")
    ids.frombytes(body[4 : 4 + 4 * count])
    logprobs.frombytes(body[4 + 4 * count :])
    return ids.tolist(), logprobs.tolist()


def about(
    key: str, digest: str, num_prompt_tokens: int, place: Mapping[str, str], *, named: bool
) -> dict[str, Any]:
    """What a record says about its request."""
    return {
        "key": key,
        "digest": digest,
        "named": named,
        "prompt_tokens": num_prompt_tokens,
        "place": dict(place),
        "at": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
    }
