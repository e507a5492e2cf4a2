"""An engine that plays written turns, token by token, through the real tokenizer rules.

It keeps the contract of `baleen.engine`: a session holds the tokens it has computed, computes only
what a prompt adds to them, and saves and loads them. What it plays depends on the prompt's tokens
alone, so a prompt that is not exactly the one that was recorded makes it fail.
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

from baleen.protocol import tokens


def byte_tokenizer() -> Tokenizer:
    """One token per byte, and the special tokens."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE({c: i for i, c in enumerate(alphabet)}, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([AddedToken(token, normalized=False) for token in tokens.ALL])
    return tokenizer


def turn_text(reasoning: str, content: str = "", commands: Sequence[str] = ()) -> str:
    """A turn as a model writes it, without the end token."""
    text = f"{reasoning}</think>{content}"
    if not commands:
        return text
    calls = "\n".join(
        f'<{tokens.DSML}invoke name="bash">\n'
        f'<{tokens.DSML}parameter name="command" string="true">{command}'
        f"</{tokens.DSML}parameter>\n</{tokens.DSML}invoke>"
        for command in commands
    )
    return f"{text}\n\n<{tokens.DSML}tool_calls>\n{calls}\n</{tokens.DSML}tool_calls>"


class Token(NamedTuple):
    id: int
    logprob: float


class ScriptedEngine:
    """Says turn n when the prompt opens turn n."""

    def __init__(self, turns: Sequence[str], *, pause_s: float = 0.0) -> None:
        self.name = "scripted"
        self.config = None
        self.tokenizer = byte_tokenizer()
        self.pause_s = pause_s
        self.eos_id = self.tokenizer.token_to_id(tokens.EOS)
        self.completions = [
            [*self.tokenizer.encode(turn, add_special_tokens=False).ids, self.eos_id]
            for turn in turns
        ]

    def session(self) -> ScriptedSession:
        return ScriptedSession(self)


class ScriptedSession:
    def __init__(self, engine: ScriptedEngine) -> None:
        self._engine = engine
        self.token_ids: list[int] = []
        self.prefilled_tokens = 0
        self.reused_tokens = 0

    @property
    def cache_bytes(self) -> int:
        return 4 * len(self.token_ids)

    @property
    def gqa8_cache_bytes(self) -> int:
        return 200 * len(self.token_ids)

    def generate(self, prompt_ids: Sequence[int], sampling: object) -> Iterator[Token]:
        common = 0
        while common < min(len(prompt_ids), len(self.token_ids)) and (
            prompt_ids[common] == self.token_ids[common]
        ):
            common += 1
        self.token_ids = list(prompt_ids)
        self.reused_tokens += common
        self.prefilled_tokens += len(prompt_ids) - common
        for token_id in self._rest(prompt_ids)[: sampling.max_tokens]:  # type: ignore[attr-defined]
            time.sleep(self._engine.pause_s)
            self.token_ids.append(token_id)
            yield Token(token_id, -1.0 / (1 + token_id))

    def _rest(self, prompt_ids: Sequence[int]) -> list[int]:
        """What is left of the turn that the prompt has opened."""
        assistant = self._engine.tokenizer.token_to_id(tokens.ASSISTANT)
        think = self._engine.tokenizer.token_to_id(tokens.THINK_OPEN)
        opened = [i for i, token_id in enumerate(prompt_ids) if token_id == assistant]
        assert prompt_ids[opened[-1] + 1] == think
        begun = list(prompt_ids[opened[-1] + 2 :])
        completion = self._engine.completions[len(opened) - 1]
        assert completion[: len(begun)] == begun, "the prompt is not what was sampled"
        for number, position in enumerate(opened[:-1]):
            said = self._engine.completions[number]
            start = position + 2
            assert list(prompt_ids[start : start + len(said)]) == said, f"turn {number} changed"
        return completion[len(begun) :]

    def save(self, path: Path) -> None:
        temporary = path.with_suffix(".new")
        temporary.write_text(json.dumps(self.token_ids))
        temporary.replace(path)

    def load(self, path: Path) -> None:
        self.token_ids = json.loads(path.read_text())
