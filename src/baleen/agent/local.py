"""A model that runs in this process, driven by tokens alone.

The context is the exact ids that were sampled plus the ids of what was said since: nothing is ever
decoded and encoded again. Each token is on record before the next one is sampled, so a turn that a
crash cut off goes on after its last token. The attention state is saved when a turn ends; without
it, or if it does not fit the record, the context is computed again.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from baleen.agent import records
from baleen.agent.base import ToolCall, Turn, Usage, Watch
from baleen.agent.config import NANO
from baleen.agent.fingerprint import fingerprint
from baleen.agent.history import TurnState
from baleen.agent.journal import Journal
from baleen.agent.kv_file import restore, save
from baleen.agent.prompt import Prompt
from baleen.agent.timer import Timer
from baleen.assets import nano_dir
from baleen.errors import CheckpointError, MissingExtraError, RunError
from baleen.protocol import Encoder
from baleen.protocol import Prompt as EncodedPrompt
from baleen.protocol.events import ContentDelta, Event, ReasoningDelta
from baleen.protocol.tokens import EOS

if TYPE_CHECKING:
    from baleen.engine import Engine, Session


class LocalEndpoint:
    """One conversation on an engine that runs here."""

    def __init__(
        self,
        engine: Engine,
        prompt: Prompt,
        *,
        fingerprint: str,
        temperature: float = 0.0,
        seed: int = 0,
    ) -> None:
        self.name = engine.name
        self._policy = f"{engine.name}:{fingerprint}:{prompt.revision}"
        self._engine = engine
        self._prompt = prompt
        self._temperature = temperature
        self._seed = seed
        self._encoder = Encoder(revision=prompt.revision)
        self._eos_id = engine.tokenizer.token_to_id(EOS)
        self._session: Session | None = None
        self._restored_tokens = 0

    @classmethod
    def load(
        cls, model: str, prompt: Prompt, *, temperature: float = 0.0, seed: int = 0
    ) -> LocalEndpoint:
        """Load a model folder, or `nano`.

        Raises:
            CheckpointError: it cannot be loaded.
            MissingExtraError: torch is not installed.
        """
        is_nano = model == NANO
        folder = nano_dir() if is_nano else Path(model)
        if not (folder / "config.json").is_file():
            raise CheckpointError(
                f"there is no model in {folder}",
                remedy="baleen doctor says what is missing; --model URL needs no checkpoint",
            )
        try:
            from baleen.engine import Engine
        except ModuleNotFoundError as error:
            raise MissingExtraError(
                f"a model in this process needs {error.name}", remedy="pip install 'baleen[model]'"
            ) from error
        engine = Engine.load(model, num_threads=1 if is_nano else None)  # too small to share out
        if engine.tokenizer.token_to_id(EOS) != engine.config.eos_token_id:
            raise CheckpointError(
                f"{folder}: config.json ends turns with token {engine.config.eos_token_id}, "
                f"tokenizer.json calls {EOS} {engine.tokenizer.token_to_id(EOS)}",
                remedy="take both files from one model",
            )
        return cls(
            engine,
            prompt,
            fingerprint=fingerprint(folder),
            temperature=temperature,
            seed=seed,
        )

    async def sample(self, journal: Journal, max_tokens: int, watch: Watch) -> Turn:
        """Sample a turn, or the rest of one, token by token."""
        self._check_policy(journal)
        session = self._open_session(journal, watch)
        encoded = self._encode(journal)
        state = self._open_turn(journal, encoded)
        num_prompt_tokens = len(journal.history.context_ids) - len(state.token_ids)
        reused_before = session.reused_tokens
        parser = encoded.parser(tokenizer=self._engine.tokenizer)
        timer = Timer()
        _show(parser.feed([i for i in state.token_ids if i != self._eos_id]), watch)
        for token_id, logprob in self._tokens(session, journal, max_tokens):
            timer.first()
            number = len(journal.history.turns) - 1
            journal.write(records.Tokens(number, [token_id], [logprob]))
            if token_id != self._eos_id:
                _show(parser.feed([token_id]), watch)
            await asyncio.sleep(0)  # lets a deadline or a signal in between two tokens
        finish_reason = "stop" if self._is_complete(state) else "length"
        reading = parser.finish(finish_reason)
        _show(parser.last_events, watch)
        save(session, journal.folder.kv, self._policy)
        return Turn(
            reasoning=reading.reasoning,
            content=reading.content,
            calls=tuple(
                ToolCall(call.id, call.name, call.arguments, str(call.status))
                for call in reading.tool_calls
            ),
            finish_reason=finish_reason,
            usage=Usage(
                prompt_tokens=num_prompt_tokens,
                completion_tokens=len(state.token_ids),
                cached_tokens=min(session.reused_tokens - reused_before, num_prompt_tokens),
            ),
            duration_s=timer.elapsed_s,
            first_token_s=timer.first_s,
        )

    def facts(self) -> Mapping[str, Any]:
        """What this process computed, what it found computed, and what its cache takes."""
        session = self._session
        if session is None:
            return {}
        return {
            "prefilled_tokens": session.prefilled_tokens,
            "reused_tokens": session.reused_tokens,
            "restored_tokens": self._restored_tokens,
            "cache_bytes": session.cache_bytes,
            "gqa8_cache_bytes": session.gqa8_cache_bytes,
        }

    async def close(self) -> None:
        """Forget the session; the engine is freed with this object."""
        self._session = None

    def _check_policy(self, journal: Journal) -> None:
        """Say whose tokens follow; a run is not continued by another model than began it."""
        recorded = journal.history.policy
        if recorded is None:
            journal.write(records.Policy(self._policy))
        elif recorded != self._policy:
            raise RunError(
                f"the run was begun by {recorded}, the model here is {self._policy}",
                remedy="resume with the checkpoint that began it",
            )

    def _open_session(self, journal: Journal, watch: Watch) -> Session:
        if self._session is None:
            self._session = self._engine.session()
            context = journal.history.context_ids
            if context:
                self._restored_tokens = restore(
                    self._session, journal.folder.kv, self._policy, context
                )
                watch.note(
                    f"attention state: {self._restored_tokens} of {len(context)} tokens restored, "
                    f"{len(context) - self._restored_tokens} to compute"
                )
        return self._session

    def _encode(self, journal: Journal) -> EncodedPrompt:
        return self._encoder.encode(
            journal.history.messages(),
            tools=list(self._prompt.tools),
            thinking=True,
            effort=self._prompt.effort,
        )

    def _open_turn(self, journal: Journal, encoded: EncodedPrompt) -> TurnState:
        """The turn in progress, or a new one with its part of the prompt on record."""
        if journal.history.current is None:
            number = len(journal.history.turns)
            journal.write(records.Prompt(number, self._new_ids(journal, encoded)))
        state = journal.history.current
        assert state is not None, "its prompt record has opened the turn"
        return state

    def _is_complete(self, state: TurnState) -> bool:
        return bool(state.token_ids) and state.token_ids[-1] == self._eos_id

    def _new_ids(self, journal: Journal, encoded: EncodedPrompt) -> list[int]:
        """Ids of what the context does not hold yet: all of it, or what follows the last turn.

        Turns end with the end-of-sentence token and nothing else contains it, so the segments
        behind the last one are exactly the new ones.
        """
        if not journal.history.turns:
            return encoded.token_ids(self._engine.tokenizer)
        last = max(i for i, segment in enumerate(encoded.segments) if segment == (EOS, True))
        new = EncodedPrompt(encoded.segments[last + 1 :], thinking=encoded.thinking)
        return new.token_ids(self._engine.tokenizer)

    def _tokens(
        self, session: Session, journal: Journal, max_tokens: int
    ) -> Iterable[tuple[int, float]]:
        from baleen.engine import Sampling

        state = journal.history.current
        assert state is not None, "there is a turn to continue"
        left = max_tokens - len(state.token_ids)
        if left <= 0 or self._is_complete(state):
            return
        sampling = Sampling(temperature=self._temperature, seed=self._seed, max_tokens=left)
        for token in session.generate(journal.history.context_ids, sampling):
            yield token.id, token.logprob


def _show(events: Iterable[Event], watch: Watch) -> None:
    for event in events:
        match event:
            case ReasoningDelta(text):
                watch.reasoning(text)
            case ContentDelta(text):
                watch.content(text)
