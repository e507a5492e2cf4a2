"""A model in this process: the bundled checkpoint, or a folder that fits into memory.

Each generation runs in a thread of its own, a few at a time. Sessions outlive their generation, so
the next turn of a conversation finds its prefix computed; the session with the longest common
prefix is used, and the least recently used one goes when there are too many.
"""

from __future__ import annotations

import asyncio
import secrets
import threading
from collections import OrderedDict
from typing import TYPE_CHECKING, Any, Final

import orjson

from baleen.errors import BaleenError, MissingExtraError
from baleen.protocol.grammar import AnswerRules, CallMask, CallRules, Vocabulary
from baleen.server.base import Capabilities, Constraint, EngineState, Generation, Piece, Taker
from baleen.server.errors import UpstreamError
from baleen.server.prefix import num_shared
from baleen.server.upstreams.structural_tag import rules_for

if TYPE_CHECKING:
    from baleen.engine import Engine, Session

_MAX_SESSIONS: Final = 16
_MAX_AT_ONCE: Final = 4
_MAX_RULES: Final = 32


class LocalUpstream:
    """Continues tokens with an engine of this process."""

    def __init__(self, engine: Engine, revision: str) -> None:
        self._engine = engine
        self._guides = _Guides(engine.tokenizer, revision)
        self._idle: list[Session] = []
        self._slots = asyncio.Semaphore(_MAX_AT_ONCE)
        self._stopping = threading.Event()
        self._num_waiting = self._num_recomputed = 0

    @classmethod
    def load(cls, source: str, revision: str) -> LocalUpstream:
        """Load a model folder, or `nano`; calls are held to the markup of a revision.

        Raises:
            CheckpointError: it cannot be loaded.
            MissingExtraError: torch is not installed.
        """
        try:
            from baleen.engine import Engine
        except ModuleNotFoundError as error:
            raise MissingExtraError(
                f"a model in this process needs {error.name}", remedy="pip install 'baleen[serve]'"
            ) from error
        return cls(Engine.load(source, num_threads=1 if source == "nano" else None), revision)

    @property
    def tokenizer(self) -> object:
        """The tokenizer of the model."""
        return self._engine.tokenizer

    async def capabilities(self) -> Capabilities:
        """What the model's configuration says."""
        context = self._engine.config.max_position_embeddings
        name = f"baleen engine, {self._engine.name}"
        return Capabilities(
            name, context, calls_grammar=True, json_grammar=True, prompt_logprobs=True
        )

    async def generate(self, asked: Generation, taker: Taker) -> None:
        """Continue the ids, a token at a time."""
        guide = self._guides.guide_for(asked.constraint)
        self._num_waiting += 1
        try:
            await self._slots.acquire()
        finally:
            self._num_waiting -= 1
        try:
            await self._generate(asked, guide, taker)
        finally:
            self._slots.release()

    async def _generate(self, asked: Generation, guide: CallMask | None, taker: Taker) -> None:
        """With a slot of its own."""
        session, shared = self._session_for(asked)
        pieces: asyncio.Queue[Piece | BaseException | None] = asyncio.Queue()
        cancelled = threading.Event()
        loop = asyncio.get_running_loop()

        def put(item: Piece | BaseException | None) -> None:
            if not loop.is_closed():
                loop.call_soon_threadsafe(pieces.put_nowait, item)

        thread = threading.Thread(
            target=self._work,
            args=(session, asked, guide, put, cancelled),
            name="baleen-generate",
        )
        thread.start()
        try:
            while (item := await pieces.get()) is not None:
                if isinstance(item, BaseException):
                    raise UpstreamError(f"the model failed: {item}") from item
                if item.cached_tokens is not None:
                    self._num_recomputed += max(0, shared - item.cached_tokens)
                if not taker.take(item):
                    break
                await taker.room.cleared()
        finally:
            cancelled.set()
            await asyncio.shield(asyncio.to_thread(thread.join))
            self._give_back(session)

    def _work(
        self,
        session: Session,
        asked: Generation,
        guide: CallMask | None,
        put: object,
        cancelled: threading.Event,
    ) -> None:
        """Generate in a thread; ends behind the token during which it is cancelled."""
        from baleen.engine import Sampling

        assert callable(put), "the queue's end in the loop"
        sampling = Sampling(
            temperature=asked.temperature,
            top_p=asked.top_p,
            seed=secrets.randbelow(1 << 31) if asked.seed is None else asked.seed,
            max_tokens=asked.max_tokens,
            min_tokens=asked.min_tokens,
            num_top=asked.top_logprobs or 0,
        )
        eos, count = self._engine.config.eos_token_id, 0
        wants_logprobs = asked.top_logprobs is not None
        reused_before = session.reused_tokens
        try:
            scores = session.score(asked.ids) if asked.scores_prompt else ()
            for token in session.generate(list(asked.ids), sampling, guide):
                count += 1
                finish = "length" if count == asked.max_tokens else None
                cached = session.reused_tokens - reused_before if count == 1 else None
                put(
                    Piece(
                        (token.id,),
                        (token.logprob,) if wants_logprobs else (),
                        "stop" if token.id == eos else finish,
                        cached,
                        (token.top,) if wants_logprobs else (),
                        scores if count == 1 else (),
                    )
                )
                if cancelled.is_set() or self._stopping.is_set():
                    break
        except (BaleenError, RuntimeError, ValueError) as error:
            put(error)
        put(None)

    def _session_for(self, asked: Generation) -> tuple[Session, int]:
        """The idle session that has most of the prompt, and how much; a new one if none has any."""
        best, shared = None, 0
        for session in self._idle:
            common = num_shared(session.token_ids, asked.ids)
            if common > shared:
                best, shared = session, common
        if best is None:
            return self._engine.session(), 0
        self._idle.remove(best)
        return best, min(shared, len(asked.ids) - 1)

    def state(self) -> EngineState:
        """How full it is; sessions that generate right now are not counted."""
        held = sum(len(session.token_ids) for session in self._idle)
        room = _MAX_SESSIONS * self._engine.config.max_position_embeddings
        return EngineState(self._num_waiting, held / room, self._num_recomputed)

    def _give_back(self, session: Session) -> None:
        self._idle.append(session)
        del self._idle[:-_MAX_SESSIONS]

    async def close(self) -> None:
        """Stop generating and forget the sessions."""
        self._stopping.set()
        self._idle.clear()


class _Guides:
    """Masks for constraints; an agent's tools are the same each turn, and so are their masks."""

    def __init__(self, tokenizer: Any, revision: str) -> None:
        self._tokenizer, self._revision = tokenizer, revision
        self._vocabulary: Vocabulary | None = None
        self._rules: OrderedDict[bytes, CallRules | AnswerRules] = OrderedDict()

    def guide_for(self, constraint: Constraint | None) -> CallMask | None:
        """None if there is nothing to hold to.

        Raises:
            ToolSchemaError: no call could conform to the tools.
            MessageError: no answer could have the form.
        """
        if constraint is None or not (constraint.has_calls or constraint.form):
            return None
        if self._vocabulary is None:
            self._vocabulary = Vocabulary(self._tokenizer)
        return CallMask(
            self._rules_of(constraint),
            self._vocabulary,
            thinking=constraint.thinking,
            in_block=constraint.in_block,
        )

    def _rules_of(self, constraint: Constraint) -> CallRules | AnswerRules:
        form, calls = constraint.form, constraint.has_calls
        shape = (constraint.tools, constraint.choice, constraint.parallel, form and [*form])
        key = orjson.dumps(shape)
        rules = self._rules.pop(key, None)
        if rules is None:
            call_rules = rules_for(constraint, self._revision) if calls else None
            # A call that is forced leaves no room for an answer.
            forced = call_rules if call_rules is not None and call_rules.forces else None
            rules = forced or (AnswerRules(form, call_rules) if form else call_rules)
            assert rules is not None, "the constraint holds to something"
        self._rules[key] = rules
        if len(self._rules) > _MAX_RULES:
            self._rules.popitem(last=False)
        return rules
