"""What was asked and what was sampled, as records that can be replayed: `baleen serve --trace DIR`.

One log per process, `<UTC>-<pid>.log`, in the format of a box's trajectory, so that one reader
(:mod:`baleen.sandbox.trajectory`) serves debugging and training. Kinds and payloads:

- `open`: model, revision, flavor, version;
- `intent`, key the answer's id: `op` "answer", `place` (episode and turn as the client named them),
  sampling, and the prompt: `ids`, behind the first `shared` ids of prompt and answer of the record
  `follows`, if there is one; what became of the prefix;
- `result`, same key: `intent`, the sampled `ids` (end-of-sentence included), `logprobs`, the number
  of reasoning tokens, finish, calls, repairs, stall;
- `infra-fail`: `intent`, cause and text; the answer broke off behind `ids`.

Ids are little-endian u32, log-probabilities f32. The log holds what was said, in tokens.
"""

from __future__ import annotations

import logging
import os
from array import array
from collections.abc import Iterator, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from baleen.sandbox.errors import TrajectoryError
from baleen.sandbox.log import Log
from baleen.sandbox.trajectory import Kind, read
from baleen.server.prefix import num_shared

if TYPE_CHECKING:
    from baleen.server.answers.answer import Answer
    from baleen.server.requests.prepared import Prepared

_log = logging.getLogger(__name__)


class ExchangeLog:
    """Writes down the exchanges of one gateway; a full disk ends the log, not the answers."""

    def __init__(self, folder: Path, about: Mapping[str, Any]) -> None:
        path = folder / f"{datetime.now(UTC):%Y%m%dT%H%M%SZ}-{os.getpid()}.log"
        self._log: Log | None = Log.create(path)
        self._append(Kind.OPEN, dict(about), None)

    def asked(self, answer: Answer) -> int:
        """Write down a request; returns the record's number."""
        prepared = answer.prepared
        ask, sampling = prepared.ask, prepared.sampling
        cache_break = prepared.cache_break
        payload = {
            "op": "answer",
            "place": dict(ask.place),
            "sampling": {**sampling._asdict(), "seed": ask.seed, "stop": list(ask.stop)},
            "max_tokens": prepared.max_tokens,
            "thinking": prepared.prompt.thinking,
            "effort": ask.options["effort"],
            "reasoning_restored": prepared.num_reasoning_restored,
            "cache_break": cache_break._asdict() if cache_break is not None else None,
            **_prompt_fields(prepared),
        }
        return self._append(Kind.INTENT, payload, answer.id)

    def answered(self, answer: Answer, intent: int, *, is_whole: bool) -> int:
        """Write down what came of it; returns the record's number."""
        payload: dict[str, Any] = {"intent": intent, **_sampled_fields(answer)}
        if not is_whole:
            cause = "upstream" if answer.failed else "client"
            payload |= {"cause": cause, "text": "the answer broke off"}
            return self._append(Kind.INFRA_FAIL, payload, answer.id)
        turn = answer.turn
        payload |= {
            "finish": answer.finish_reason,
            "calls": [
                {"id": call.id, "name": call.name, "status": str(call.status)}
                for call in (*turn.tool_calls, *turn.incomplete_calls)
            ],
            "repairs": {str(kind): number for kind, number in turn.repairs.items()},
            "stall": str(answer.stall) if answer.stall is not None else None,
            "recovered": answer.recovered,
            "closed_by": answer.closed_by,
            "resumed_tokens": answer.num_resumed_tokens,
            "cached_tokens": answer.num_cached_tokens,
        }
        return self._append(Kind.RESULT, payload, answer.id)

    def _append(self, kind: Kind, payload: dict[str, Any], key: str | None) -> int:
        if self._log is None:
            return -1
        try:
            return self._log.append(kind, payload, key, sync=False).seq
        except TrajectoryError as error:
            _log.error("the trace ends here: %s", error)
            self.close()
            return -1

    def close(self) -> None:
        """Close the file."""
        if self._log is not None:
            self._log.close()
            self._log = None


def _prompt_fields(prepared: Prepared) -> dict[str, Any]:
    """The prompt, as what is new behind an earlier exchange where it goes on from one."""
    before, ids = prepared.before, prepared.ids
    if before is None or before.record < 0:
        return {"follows": None, "shared": 0, "ids": _packed(ids)}
    shared = num_shared(before.ids, ids)
    return {"follows": before.record, "shared": shared, "ids": _packed(ids[shared:])}


def _sampled_fields(answer: Answer) -> dict[str, Any]:
    return {
        "ids": _packed(answer.sampled),
        "logprobs": array("f", answer.logprobs).tobytes(),
        "reasoning_tokens": answer.num_reasoning_tokens,
    }


def _packed(ids: Sequence[int]) -> bytes:
    return array("I", ids).tobytes()


class Exchange(NamedTuple):
    """One request and what was sampled for it."""

    key: str
    prompt_ids: array[int]
    sampled_ids: array[int]
    asked: Mapping[str, Any]
    answered: Mapping[str, Any]


def exchanges(path: Path) -> Iterator[Exchange]:
    """The exchanges of a log that have ended, whole or not, in the order in which they did.

    Raises:
        TrajectoryError: not such a log, or damaged before its last record.
    """
    asked: dict[int, tuple[Mapping[str, Any], array[int]]] = {}
    ended: dict[int, array[int]] = {}
    for record in read(path):
        if record.kind is Kind.INTENT:
            new = _unpacked(record.payload["ids"])
            follows, shared = record.payload["follows"], record.payload["shared"]
            before = ended[follows][:shared] if follows is not None else array("I")
            asked[record.seq] = (record.payload, before + new)
        elif record.kind in (Kind.RESULT, Kind.INFRA_FAIL):
            intent, prompt = asked.pop(record.payload["intent"])
            sampled = _unpacked(record.payload["ids"])
            ended[record.seq] = prompt + sampled
            yield Exchange(record.key or "", prompt, sampled, intent, record.payload)


def _unpacked(data: bytes) -> array[int]:
    ids = array("I")
    ids.frombytes(data)
    return ids
