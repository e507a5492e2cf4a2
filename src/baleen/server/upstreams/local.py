"""A model in this process: the bundled checkpoint, or a folder that fits into memory.

Each generation runs in a thread of its own, a few at a time. Sessions outlive their generation, so
the next turn of a conversation finds its prefix computed; the session with the longest common
prefix is used, and the least recently used one goes when there are too many.
"""

from __future__ import annotations

import asyncio
import secrets
import threading
from typing import TYPE_CHECKING, Final

from baleen.errors import BaleenError, MissingExtraError
from baleen.server.base import Capabilities, Generation, Piece, Taker
from baleen.server.errors import UpstreamError
from baleen.server.prefix import num_shared

if TYPE_CHECKING:
    from baleen.engine import Engine, Session

_MAX_SESSIONS: Final = 16
_MAX_AT_ONCE: Final = 4


class LocalUpstream:
    """Continues tokens with an engine of this process."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._idle: list[Session] = []
        self._slots = asyncio.Semaphore(_MAX_AT_ONCE)
        self._stopping = threading.Event()

    @classmethod
    def load(cls, source: str) -> LocalUpstream:
        """Load a model folder, or `nano`.

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
        return cls(Engine.load(source, num_threads=1 if source == "nano" else None))

    @property
    def tokenizer(self) -> object:
        """The tokenizer of the model."""
        return self._engine.tokenizer

    async def capabilities(self) -> Capabilities:
        """What the model's configuration says."""
        context = self._engine.config.max_position_embeddings
        return Capabilities(f"baleen engine, {self._engine.name}", context)

    async def generate(self, asked: Generation, taker: Taker) -> None:
        """Continue the ids, a token at a time."""
        async with self._slots:
            session = self._session_for(asked)
            pieces: asyncio.Queue[Piece | BaseException | None] = asyncio.Queue()
            cancelled = threading.Event()
            loop = asyncio.get_running_loop()

            def put(item: Piece | BaseException | None) -> None:
                if not loop.is_closed():
                    loop.call_soon_threadsafe(pieces.put_nowait, item)

            thread = threading.Thread(
                target=self._work, args=(session, asked, put, cancelled), name="baleen-generate"
            )
            thread.start()
            try:
                while (item := await pieces.get()) is not None:
                    if isinstance(item, BaseException):
                        raise UpstreamError(f"the model failed: {item}") from item
                    if not taker.take(item):
                        break
                    if taker.is_full:
                        await taker.drained()
            finally:
                cancelled.set()
                await asyncio.shield(asyncio.to_thread(thread.join))
                self._give_back(session)

    def _work(
        self, session: Session, asked: Generation, put: object, cancelled: threading.Event
    ) -> None:
        """Generate in a thread; ends behind the token during which it is cancelled."""
        from baleen.engine import Sampling

        assert callable(put), "the queue's end in the loop"
        sampling = Sampling(
            temperature=asked.temperature,
            top_p=asked.top_p,
            seed=secrets.randbelow(1 << 31) if asked.seed is None else asked.seed,
            max_tokens=asked.max_tokens,
        )
        eos, count = self._engine.config.eos_token_id, 0
        wants_logprobs = asked.top_logprobs is not None
        reused_before = session.reused_tokens
        try:
            for token in session.generate(list(asked.ids), sampling):
                count += 1
                finish = "length" if count == asked.max_tokens else None
                cached = session.reused_tokens - reused_before if count == 1 else None
                put(
                    Piece(
                        (token.id,),
                        (token.logprob,) if wants_logprobs else (),
                        "stop" if token.id == eos else finish,
                        cached,
                    )
                )
                if cancelled.is_set() or self._stopping.is_set():
                    break
        except (BaleenError, RuntimeError, ValueError) as error:
            put(error)
        put(None)

    def _session_for(self, asked: Generation) -> Session:
        """The idle session that has most of the prompt; a new one if none has any."""
        best, shared = None, 0
        for session in self._idle:
            common = num_shared(session.token_ids, asked.ids)
            if common > shared:
                best, shared = session, common
        if best is None:
            return self._engine.session()
        self._idle.remove(best)
        return best

    def _give_back(self, session: Session) -> None:
        self._idle.append(session)
        del self._idle[:-_MAX_SESSIONS]

    async def close(self) -> None:
        """Stop generating and forget the sessions."""
        self._stopping.set()
        self._idle.clear()
