"""One answer: from the upstream's tokens to events, with everything that can go wrong between.

The stretch of life that it handles:

1. Tokens that an earlier process recorded for the same request are said again, for nothing.
2. The upstream continues them; each token is written down before it is said.
3. Reasoning is watched: a spent budget or a loop closes it with a token of ours.
4. A stream that breaks off is continued from the tokens so far, a few times.
5. A turn that ends with nothing said is decoded once more, its end masked.

All of these are the same move: ask the upstream to go on from the prompt and the tokens so far.
"""

from __future__ import annotations

import asyncio
import logging
from array import array
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import replace
from time import monotonic
from typing import TYPE_CHECKING, Protocol

from baleen.protocol import tokens
from baleen.protocol.events import CallEnd, CallStart, ContentDelta, Event, ReasoningDelta
from baleen.protocol.turn import Turn
from baleen.server.answers.reasoning import Reasoning
from baleen.server.answers.stalls import RECOVERABLE, StallKind, stall_of
from baleen.server.answers.stop_strings import StopStrings
from baleen.server.base import Constraint, Generation, Piece
from baleen.server.errors import UpstreamError, UpstreamRefusalError, UpstreamStallError
from baleen.server.requests.prepared import Prepared
from baleen.server.room import Room
from baleen.server.store.token_log import Recorded

if TYPE_CHECKING:
    from baleen.server.gateway import Gateway

_log = logging.getLogger(__name__)
_TAIL_CHARS = 4_096
_BACK_OFF_S = (0.05, 0.5, 2.0)


class Listener(Protocol):
    """Who hears an answer."""

    room: Room
    """While it is full, the upstream is held up."""

    def hear(self, events: list[Event]) -> None:
        """Some more of the answer."""
        ...


class Answer:
    """Generates one answer: :meth:`open` it, :meth:`run` it to a listener, then read the rest.

    It is the :class:`~baleen.server.base.Taker` of its upstream's tokens.
    """

    def __init__(self, gateway: Gateway, prepared: Prepared, answer_id: str) -> None:
        self.id, self.prepared = answer_id, prepared
        self.sampled: list[int] = []
        self.logprobs: list[float] = []
        self.top: list[Sequence[tuple[int, float]]] = []
        self.num_cached_tokens = 0
        self.num_resumed_tokens = 0
        self.stall: StallKind | None = None
        self.recovered = False
        self.failed = False
        """The upstream failed for good; what was sampled is worth going on with."""
        self.turn = Turn()
        self.intent = -1
        """Number of its request's record in the trace, if there is one."""
        self.first_token_at: float | None = None
        self.last_token_at: float | None = None
        self.started_at = monotonic()
        self._gateway = gateway
        self._config, self._vocabulary = gateway.config, gateway.vocabulary
        self._parser = prepared.prompt.parser(
            repair=gateway.config.repair, tokenizer=gateway.tokenizer
        )
        self._stops = StopStrings(prepared.ask.stop) if prepared.ask.stop else None
        start = prepared.prompt.start
        self._reasoning = Reasoning(
            self._vocabulary,
            is_open=prepared.prompt.thinking and start in (None, "reasoning"),
            budgets=(prepared.ask.thinking_budget, self._config.thinking_budget),
            loop_closes=self._config.loop_closes,
        )
        self._trace = prepared.ask.trace
        self._content = ""
        self._has_calls = False
        self._finish: str | None = None
        self._record: Recorded | None = None
        self._is_open = False
        self._min_tokens = 0
        self._num_failures = 0
        self._has_said_cached = False
        self._has_enough = False
        """Of the stretch that is being decoded."""
        self._listener: Listener
        self.room = Room()
        """The listener's, once there is one."""

    # --- what came of it -----------------------------------------------------------------------

    @property
    def finish_reason(self) -> str:
        """stop, length, tool_calls or content_filter."""
        if self.stop_string is not None and not self.turn.tool_calls:
            return "stop"
        return self.turn.finish_reason

    @property
    def num_reasoning_tokens(self) -> int:
        """Tokens up to the end of the reasoning."""
        return self._reasoning.num_tokens

    @property
    def closed_by(self) -> str | None:
        """What closed the reasoning, if not the model: budget or loop."""
        return self._reasoning.closed_by

    @property
    def stop_string(self) -> str | None:
        """The stop string that ended the content, if one did."""
        return self._stops.found if self._stops is not None else None

    @property
    def content_cut(self) -> str:
        """The content, up to a stop string."""
        if self._stops is None:
            return self.turn.content
        return self._stops.before(self.turn.content)

    @property
    def context_remaining(self) -> int:
        """Tokens that still fit behind this answer."""
        used = len(self.prepared.ids) + len(self.sampled)
        return max(0, self.prepared.context_tokens - used)

    # --- the life of an answer -----------------------------------------------------------------

    def open(self) -> None:
        """Count as running and open the record, until :meth:`run` ends or :meth:`leave`.

        Raises:
            KeyConflictError: the idempotency key belongs to another request, or is being answered.
        """
        self._record = self._gateway.open_record(self)
        self._is_open = True

    def leave(self) -> None:
        """Nobody waits for the answer any more; nothing happens behind the end of :meth:`run`."""
        self._close(is_whole=False)

    def _close(self, *, is_whole: bool) -> None:
        if self._is_open:
            self._is_open = False
            self._gateway.close_record(self, self._record, is_whole=is_whole)

    async def run(self, listener: Listener) -> None:
        """Have the listener hear what the model says, as it comes.

        Raises:
            UpstreamError: the upstream failed for good.
            UpstreamStallError: it fell silent, twice.
        """
        self._listener, self.room, is_whole = listener, listener.room, False
        try:
            self._say(self._resume())
            while self._finish is None:
                await self._stretch()
                if self._finish is not None and self._may_recover():
                    self._say(self._recover())
            self._say(self._end())
            is_whole = True
            if self._trace is not None:
                self._trace.answered(self)
        except (UpstreamError, UpstreamStallError):
            self.failed = True
            raise
        finally:
            self._close(is_whole=is_whole)

    async def _stretch(self) -> None:
        """Decode until the turn ends, or until it has to be asked for again."""
        self._has_enough = False
        try:
            with self._trace.upstream(len(self.sampled)) if self._trace else nullcontext():
                await self._gateway.upstream.generate(self._generation(), self)
            if not self._has_enough:
                raise UpstreamError("the upstream ended its stream without saying why")
        except UpstreamRefusalError:
            raise
        except UpstreamStallError as error:
            self.stall = StallKind.NO_BYTES
            self._num_failures += self._config.upstream_retries - 1
            await self._fail(error)
        except UpstreamError as error:
            await self._fail(error)

    async def _fail(self, error: UpstreamError | UpstreamStallError) -> None:
        """Go on from the tokens so far, or give up."""
        self._num_failures += 1
        if self._num_failures > self._config.upstream_retries:
            raise error
        self._gateway.telemetry.upstream_retries.add()
        _log.warning("%s: %s; going on behind token %d", self.id, error, len(self.sampled))
        await asyncio.sleep(_BACK_OFF_S[min(self._num_failures, len(_BACK_OFF_S)) - 1])

    def _generation(self) -> Generation:
        prepared = self.prepared
        min_tokens, self._min_tokens = self._min_tokens, 0
        constraint = prepared.constraint
        if constraint is not None and self.sampled:
            constraint = self._constraint_behind(constraint)
        return Generation(
            ids=prepared.ids + array("I", self.sampled) if self.sampled else prepared.ids,
            max_tokens=prepared.max_tokens - len(self.sampled),
            temperature=prepared.sampling.temperature,
            top_p=prepared.sampling.top_p,
            seed=prepared.ask.seed,
            top_logprobs=prepared.ask.top_logprobs,
            min_tokens=min_tokens,
            constraint=constraint,
            request_id=self.id,
        )

    def _constraint_behind(self, constraint: Constraint) -> Constraint | None:
        """What holds for the rest of an answer; None: it is free.

        A grammar can only follow an output from a beginning. There are three: the reasoning, its
        end, and a block of calls that was opened for the model.
        """
        if self._reasoning.is_open:
            return constraint
        if self.sampled[-1] == self._vocabulary.think_close:
            return replace(constraint, thinking=False)
        opener = self._vocabulary.call_opener
        if constraint.has_calls and self.sampled[-len(opener) :] == opener:
            return replace(constraint, thinking=False, in_block=True)
        return None

    # --- tokens --------------------------------------------------------------------------------

    def take(self, piece: Piece) -> bool:
        """Some more tokens: write them down, say what they say; False: enough of this stretch."""
        if piece.cached_tokens is not None and not self._has_said_cached:
            self._has_said_cached = True
            self.num_cached_tokens = min(piece.cached_tokens, len(self.prepared.ids))
        if self._has_enough:
            return False
        ids, finish = piece.ids, piece.finish
        if ids:
            self._time(len(ids))
            if self._reasoning.is_open and (end := self._watch_reasoning(ids)) is not None:
                ids = ids[:end]
                self._keep(ids, piece)
                self._say(self._parsed([*ids]))
                self._say(self._inject([self._vocabulary.think_close]))
                self._has_enough = True
                return False
            self._keep(ids, piece)
            eos = self._vocabulary.eos
            if eos in ids:
                ids, finish = ids[: list(ids).index(eos)], "stop"
            self._say(self._parsed(ids))
        if self._stops is not None and self._stops.found is not None:
            finish = "stop"
        elif finish is None and len(self.sampled) >= self.prepared.max_tokens:
            finish = "length"
        self._finish, self._has_enough = finish, finish is not None
        return finish is None

    def _say(self, events: list[Event]) -> None:
        if events:
            self._listener.hear(events)

    def _keep(self, ids: Sequence[int], piece: Piece) -> None:
        """Write tokens down, here and in the log, before anybody hears of them."""
        self.sampled += ids
        self._gateway.telemetry.generation_tokens.plain += len(ids)
        logprobs = piece.logprobs
        if logprobs:
            logprobs = logprobs[: len(ids)]
            self.logprobs += logprobs
            self.top += piece.top[: len(ids)]
        if self._record is not None:
            self._gateway.write_tokens(self._record, ids, logprobs)

    def _time(self, count: int) -> None:
        telemetry, before, now = self._gateway.telemetry, self.last_token_at, monotonic()
        self.last_token_at = now
        telemetry.together.observe(count)
        if before is None:
            self.first_token_at = now
            telemetry.first_token_s.observe(now - self.prepared.ask.arrived_at)
        elif count == 1:
            telemetry.inter_token_s.observe(now - before)
        else:
            telemetry.inter_token_s.observe_all([(now - before) / count] * count)
        if self._trace is not None:
            self._trace.token_came()

    def _watch_reasoning(self, ids: Sequence[int]) -> int | None:
        """Behind how many of the ids the reasoning has to be closed from outside, if it has."""
        reasoning = self._reasoning
        end = reasoning.watch(ids)
        if reasoning.is_circling and self.stall is None:
            self.stall = StallKind.REASONING_LOOP
        if reasoning.closed_by is not None:
            self._gateway.telemetry.budget_closes.add(1, reasoning.closed_by)
        return end

    def _inject(self, ids: list[int]) -> list[Event]:
        """Tokens of ours, which count as sampled."""
        self._reasoning.is_open = False
        self._keep(ids, Piece(ids, logprobs=[0.0] * len(ids) if self.logprobs else ()))
        return self._parsed(ids)

    def _parsed(self, ids: Sequence[int]) -> list[Event]:
        events = self._parser.feed(ids)
        if not events:
            return events
        if self._vocabulary.dsml in ids or self._vocabulary.think_close in ids:
            self._count_leaks(ids, events)
        if self._stops is not None:
            events = self._stops.cut(events)
        for event in events:
            if type(event) is ContentDelta:
                self._content = (self._content + event.text)[-_TAIL_CHARS:]
            elif type(event) is CallStart or type(event) is CallEnd:
                self._has_calls = True
                if self._trace is not None:
                    self._trace.call(event)
        return events

    def _count_leaks(self, ids: Sequence[int], events: Sequence[Event]) -> None:
        """A marker token that comes out as text is a bug; text that spells one is not."""
        spelled = b"".join(map(self._vocabulary.bytes_of, ids)).decode("utf-8", "replace")
        for event in events:
            if isinstance(event, ContentDelta | ReasoningDelta):
                for marker in (tokens.DSML, tokens.THINK_CLOSE):
                    if marker in event.text and marker not in spelled:
                        self._gateway.telemetry.leaks.add()

    # --- the end -------------------------------------------------------------------------------

    def _stall_now(self) -> StallKind | None:
        if self._finish != "stop" or self.stop_string is not None:
            return None
        ask = self.prepared.ask
        last = ask.messages[-1] if ask.messages else None
        return stall_of(
            content=self._content,
            has_calls=self._has_calls,
            has_reasoning=self.num_reasoning_tokens > 0,
            shows_tools=ask.shows_tools,
            follows_result=isinstance(last, dict) and last.get("role") == "tool",
        )

    def _may_recover(self) -> bool:
        kind = self._stall_now()
        if kind is None:
            return False
        self.stall = kind
        left = self.prepared.max_tokens - len(self.sampled)
        return self._config.recovers and not self.recovered and kind in RECOVERABLE and left > 1

    def _recover(self) -> list[Event]:
        """Go back to before the end of the turn, and make it go on."""
        assert self.stall is not None, "only a stalled turn is recovered"
        self.recovered, self._finish = True, None
        self._gateway.telemetry.recoveries.add(1, self.stall)
        eos = self._vocabulary.eos
        while self.sampled and self.sampled[-1] == eos:
            self.sampled.pop()
            if len(self.logprobs) > len(self.sampled):
                self.logprobs.pop()
                self.top = self.top[: len(self.logprobs)]
        if self._record is not None:
            self._gateway.cut_tokens(self._record, len(self.sampled))
        if self.stall is StallKind.ANNOUNCED_NO_ACTION:
            return self._inject(self._vocabulary.call_opener)
        self._min_tokens = 1
        return self._inject([self._vocabulary.think_close]) if self._reasoning.is_open else []

    def _end(self) -> list[Event]:
        """The turn is over: read what was held back, label it."""
        finish = self._finish or "stop"
        eos = self._vocabulary.eos
        if finish == "stop" and self.stop_string is None and eos not in self.sampled[-1:]:
            self._keep([eos], Piece([eos], logprobs=[0.0] if self.logprobs else ()))
        self.turn = self._parser.finish(finish)
        if self.stop_string is not None:
            self.turn.tool_calls = []
        events = list(self._parser.last_events)
        if self._stops is not None:
            events = [*self._stops.cut(events), *self._stops.rest()]
        after = self._stall_now()
        if not self.recovered or after is not None:
            self.stall = after or self.stall
        self._gateway.finished(self)
        return events

    # --- the log -------------------------------------------------------------------------------

    def _resume(self) -> list[Event]:
        """Say again what is recorded of this very answer."""
        record = self._record
        if record is None or not record.ids:
            return []
        ids = record.ids.copy()
        self.num_resumed_tokens = len(ids)
        self.sampled, self.logprobs = ids, record.logprobs.copy()
        self.top = [()] * len(self.logprobs)
        eos = self._vocabulary.eos
        self._reasoning.resume(ids)
        events = self._parsed(ids[:-1] if ids[-1] == eos else ids)
        if record.end is not None:
            self._finish = str(record.end["finish"])
        elif ids[-1] == eos:
            self._finish = "stop"
        elif len(ids) >= self.prepared.max_tokens:
            self._finish = "length"
        return events
