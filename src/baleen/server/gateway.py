"""The gateway: one upstream, one tokenizer, and everything that answers share."""

from __future__ import annotations

import hashlib
import logging
import secrets
import sqlite3
from array import array
from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import baleen
from baleen.protocol.replay import ReplayStore
from baleen.server.answers.answer import Answer
from baleen.server.base import Capabilities, Upstream
from baleen.server.config import GatewayConfig
from baleen.server.errors import DrainingError, KeyConflictError, OverloadedError, UpstreamError
from baleen.server.observing.telemetry import Telemetry
from baleen.server.observing.tracing import Tracing
from baleen.server.requests.ask import Ask
from baleen.server.requests.conversations import Conversations
from baleen.server.requests.prepared import Prepared, Preparer
from baleen.server.store.response_store import ResponseStore
from baleen.server.store.token_log import Recorded, TokenLog, about
from baleen.server.vocabulary import Vocabulary

if TYPE_CHECKING:
    from opentelemetry.trace import Tracer

    from baleen.server.doors.completion_run import CompletionRun
    from baleen.server.observing.exchanges import ExchangeLog

_log = logging.getLogger(__name__)


class Gateway:
    """Answers requests; :meth:`open` before, :meth:`close` after."""

    def __init__(
        self,
        config: GatewayConfig,
        tokenizer: Any,
        upstream: Upstream,
        tracer: Tracer | None = None,
    ) -> None:
        self.config, self.tokenizer, self.upstream = config, tokenizer, upstream
        self.vocabulary = Vocabulary(tokenizer, config.revision)
        self.running: set[Answer | CompletionRun] = set()
        self.is_draining = False
        self.tracing = Tracing(tracer, config.model_name) if tracer is not None else None
        self.telemetry = Telemetry(config.model_name, lambda: len(self.running), upstream.state)
        self.telemetry.registry.gauge(
            "vllm:cache_config_info",
            "Always 1; the labels say how much of turns is kept.",
            lambda: 1,
            replay_bytes=str(config.replay_bytes),
            is_kept=str(config.state_dir is not None).lower(),
        )
        self.conversations = Conversations()
        folder = config.state_dir
        if folder is not None:
            folder.mkdir(parents=True, exist_ok=True)
        self.store = ReplayStore(
            folder / "turns.db" if folder is not None else ":memory:", config.replay_bytes
        )
        self.responses = ResponseStore(
            folder / "responses.db" if folder is not None else ":memory:"
        )
        self.token_log = (
            TokenLog(folder / "tokens") if folder is not None and config.log_tokens else None
        )
        self.preparer = Preparer(config, tokenizer, self.store, self.conversations, self.telemetry)
        self.exchanges = self._open_exchanges()
        self._capabilities: Capabilities | None = None
        self._log_failed = False

    def _open_exchanges(self) -> ExchangeLog | None:
        config = self.config
        if config.trace_dir is None:
            return None
        from baleen.server.observing.exchanges import ExchangeLog

        about = {
            "model": config.model_name,
            "revision": config.revision,
            "flavor": config.flavor,
            "version": baleen.__version__,
        }
        return ExchangeLog(config.trace_dir, about)

    async def capabilities(self) -> Capabilities:
        """What the upstream can do; asked once.

        Raises:
            UpstreamError: it cannot be reached.
        """
        if self._capabilities is None:
            found, limit = await self.upstream.capabilities(), self.config.max_model_len
            if limit is not None and limit < found.context_tokens:
                found = replace(found, context_tokens=limit)
            self._capabilities = found
        return self._capabilities

    async def is_ready(self) -> bool:
        """Whether requests can be answered now."""
        try:
            await self.capabilities()
        except UpstreamError:
            return False
        return not self.is_draining

    async def close(self) -> None:
        """Let go of the upstream and the files."""
        await self.upstream.close()
        if self.token_log is not None:
            self.token_log.close()
        if self.exchanges is not None:
            self.exchanges.close()
        self.responses.close()
        self.store.close()

    # --- requests ------------------------------------------------------------------------------

    def admit(self) -> None:
        """Is there room for one more answer?

        Raises:
            DrainingError: this gateway is about to stop.
            OverloadedError: as many are being generated as may be.
        """
        if self.is_draining:
            raise DrainingError("this gateway is about to stop", remedy="ask another one")
        if len(self.running) >= self.config.max_running:
            raise OverloadedError(
                f"{len(self.running)} answers are being generated, which is the limit",
                remedy="ask again later",
            )

    async def prepare(self, ask: Ask) -> Prepared:
        """Encode a request.

        Raises:
            ServerError: it cannot be answered.
            ProtocolError: no prompt can be made of it.
        """
        self.admit()
        context_tokens = (await self.capabilities()).context_tokens
        if ask.trace is None:
            return await self.preparer.prepare(ask, context_tokens)
        with ask.trace.encoding():
            prepared = await self.preparer.prepare(ask, context_tokens)
        ask.trace.encoded(prepared)
        return prepared

    def answer(self, prepared: Prepared, answer_id: str) -> Answer:
        """A new answer; it is counted as running until its events have ended."""
        return Answer(self, prepared, answer_id)

    # --- the records of answers ----------------------------------------------------------------

    def open_record(self, answer: Answer) -> Recorded | None:
        """The log's record of an answer: one that a crash cut off, or a new one.

        Raises:
            KeyConflictError: the idempotency key belongs to another request, or is being answered.
        """
        record = self._open_token_record(answer)
        self.running.add(answer)
        if self.exchanges is not None:
            answer.intent = self.exchanges.asked(answer)
        return record

    def _open_token_record(self, answer: Answer) -> Recorded | None:
        log = self.token_log
        if log is None:
            return None
        prepared = answer.prepared
        ask = prepared.ask
        digest = _digest(prepared)
        key = f"{ask.scope}|{ask.key}" if ask.key else digest
        known = log.find(key)
        if ask.key and ((known and known.about["digest"] != digest) or log.is_open(key)):
            raise KeyConflictError(
                f"idempotency key {ask.key!r} has been used for another request,"
                " or is being answered",
                remedy="use one key per request",
            )
        if known is not None:
            self._count_resumed(answer, known)
            if known.end is None:
                log.take(known)
            return known
        try:
            return log.begin(about(key, digest, len(prepared.ids), ask.place, named=bool(ask.key)))
        except OSError as error:
            self.note_store_error(error)
            return None

    def _count_resumed(self, answer: Answer, known: Recorded) -> None:
        self.telemetry.resumed.add()
        self.telemetry.resumed_tokens.add(len(known.ids))
        _log.info("%s goes on behind %d recorded tokens", answer.id, len(known.ids))

    def write_tokens(self, record: Recorded, ids: Sequence[int], logprobs: Sequence[float]) -> None:
        """Write tokens down; a full disk stops the log, never the answer."""
        if self.token_log is not None:
            try:
                self.token_log.append(record, ids, logprobs)
            except OSError as error:
                self.note_store_error(error)

    def cut_tokens(self, record: Recorded, num_tokens: int) -> None:
        """Take written tokens back."""
        if self.token_log is not None:
            try:
                self.token_log.cut(record, num_tokens)
            except OSError as error:
                self.note_store_error(error)

    def close_record(self, answer: Answer, record: Recorded | None, *, is_whole: bool) -> None:
        """An answer has ended: with its last token, or where it broke off."""
        self.running.discard(answer)
        if self.exchanges is not None and not is_whole:
            self.exchanges.answered(answer, answer.intent, is_whole=False)
        log = self.token_log
        if log is None or record is None or record.end is not None:
            return
        try:
            if is_whole:
                calls = [call.id for call in answer.turn.tool_calls]
                log.end(record, {"finish": answer.turn.finish_reason, "calls": calls})
            elif answer.failed or self.is_draining or answer.prepared.ask.key:
                log.park(record)
            else:
                log.forget(record)
        except OSError as error:
            self.note_store_error(error)

    def note_store_error(self, error: Exception) -> None:
        """Count what could not be written down, and say it once."""
        self.telemetry.store_errors.add()
        if not self._log_failed:
            self._log_failed = True
            _log.error("cannot write down what is sampled: %s; answers go on without it", error)

    # --- the end of an answer ------------------------------------------------------------------

    def finished(self, answer: Answer) -> None:
        """Keep a whole turn for the requests that follow it, and count it."""
        prepared, turn = answer.prepared, answer.turn
        self._count(answer)
        traced = -1
        if self.exchanges is not None:
            traced = self.exchanges.answered(answer, answer.intent, is_whole=True)
        if answer.stop_string is not None:
            return  # the tokens go beyond what the client has seen
        try:
            self.store.remember(
                prepared.prompt, answer.sampled, turn, self.tokenizer, prepared.ask.scope
            )
        except sqlite3.Error as error:
            self.note_store_error(error)
        if prepared.prompt.start is None and not turn.incomplete_calls:
            self.conversations.remember(
                prepared.ask,
                prepared.prompt,
                prepared.ids + array("I", answer.sampled),
                len(prepared.ids),
                turn,
                prepared.before,
                traced,
            )

    def _count(self, answer: Answer) -> None:
        telemetry, turn = self.telemetry, answer.turn
        num_prompt, num_sampled = len(answer.prepared.ids), len(answer.sampled)
        telemetry.count_prompt(num_prompt, answer.num_cached_tokens)
        telemetry.think_tokens.add(answer.num_reasoning_tokens)
        telemetry.request_generated.observe(num_sampled)
        telemetry.success.add(1, answer.finish_reason)
        if answer.last_token_at is not None and answer.first_token_at is not None:
            decode_s = answer.last_token_at - answer.first_token_at
            arrived_at = answer.prepared.ask.arrived_at
            telemetry.queue_s.observe(answer.started_at - arrived_at)
            telemetry.prefill_s.observe(answer.first_token_at - answer.started_at)
            telemetry.inference_s.observe(answer.last_token_at - answer.started_at)
            telemetry.request_s.observe(answer.last_token_at - arrived_at)
            telemetry.decode_s.observe(decode_s)
            telemetry.output_token_s.observe(decode_s / max(1, num_sampled - 1))
        telemetry.request_max_tokens.observe(answer.prepared.max_tokens)
        if answer.prepared.ask.shows_tools:
            telemetry.parsers.add()
        for call in turn.tool_calls:
            telemetry.calls.add(1, str(call.status))
        if turn.incomplete_calls:
            telemetry.calls.add(len(turn.incomplete_calls), "truncated")
        for kind, number in turn.repairs.items():
            telemetry.repairs.add(number, str(kind))
        if answer.stall is not None:
            telemetry.stalls.add(1, answer.stall)
        telemetry.registry.fold()


def new_id(prefix: str) -> str:
    """A fresh id for an answer."""
    return f"{prefix}{secrets.token_hex(16)}"


def _digest(prepared: Prepared) -> str:
    ask = prepared.ask
    head = (ask.scope, prepared.sampling, prepared.max_tokens, ask.seed, ask.stop, ask.top_logprobs)
    digest = hashlib.blake2b(repr(head).encode(), digest_size=16)
    digest.update(prepared.ids)
    return digest.hexdigest()
