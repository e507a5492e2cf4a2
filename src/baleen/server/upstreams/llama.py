"""llama-server, by its own completion route.

It is asked for ids (`return_tokens`) and samples with all of its own habits switched off. Two of
its ways need care, both seen in build 11434:

- A streamed event carries the *last* token of its text only. A character spread over several
  tokens comes as one event, and the ids in front of the last are missing. `tokens_predicted` tells
  how many; they are recovered from the bytes of the text.
  Where the bytes are no character the text does not tell; then the next few tokens are asked for
  unstreamed, from the last id that is known.
- There is no minimum length, so end-of-sentence is forbidden by a bias in a first, short request.
"""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

from baleen.protocol import tokens
from baleen.protocol.pieces import table_for
from baleen.server.base import Capabilities, EngineState, Generation, Piece, Taker
from baleen.server.errors import UpstreamError
from baleen.server.upstreams.gbnf import Gbnf
from baleen.server.upstreams.http_client import EngineClient

_PATH = "/completion"
_FINISH = {"eos": "stop", "word": "stop", "limit": "length"}
_DETOUR_TOKENS = 16
"""Asked for unstreamed, and so with all ids, where a stream has left some out."""
_SAMPLERS = ["temperature", "top_p"]
_REPORTED = [
    "stop_type",
    "tokens_evaluated",
    "timings/cache_n",
    "tokens",
    "completion_probabilities",
]


class LlamaUpstream:
    """One llama-server."""

    def __init__(self, client: EngineClient, tokenizer: Any, revision: str = "0731") -> None:
        self._client, self._grammar = client, Gbnf(tokenizer, revision)
        self._eos = tokenizer.token_to_id(tokens.EOS)
        self._think_close = tokenizer.token_to_id(tokens.THINK_CLOSE)
        self._pieces = PieceFinder(tokenizer)

    async def capabilities(self) -> Capabilities:
        """Context of one slot, and the build."""
        props = await self._client.get("/props")
        if not isinstance(props, dict) or "default_generation_settings" not in props:
            raise UpstreamError(f"{self._client.base_url} does not answer like a llama-server")
        context = int(props["default_generation_settings"]["n_ctx"])
        name = f"llama-server {props.get('build_info', '')}".strip()
        return Capabilities(name, context, calls_grammar=True, json_grammar=True)

    async def generate(self, asked: Generation, taker: Taker) -> None:
        """Continue the ids; what cannot be had in one request is asked for in several."""
        withheld = False
        while True:
            stretch = _Stretch(asked, taker, self._think_close)
            body = self._body_of_stretch(asked, withheld=withheld)
            withheld = False
            try:
                await self._request(body, stretch)
            except WithheldError:
                if asked.constraint is not None and asked.constraint.has_calls:
                    raise  # a grammar cannot be entered in the middle
                withheld = True
            if stretch.is_over:
                return
            asked = stretch.rest()

    def _body_of_stretch(self, asked: Generation, *, withheld: bool) -> dict[str, Any]:
        """The request for as much as one request can give."""
        body = self.body(asked)
        if asked.min_tokens:
            body["n_predict"] = min(asked.min_tokens, asked.max_tokens)
            body["logit_bias"] = [[self._eos, False]]
        elif withheld:
            body["n_predict"] = min(_DETOUR_TOKENS, asked.max_tokens)
            body["stream"] = False
        return body

    def body(self, asked: Generation) -> dict[str, Any]:
        """The request."""
        wants_logprobs = asked.top_logprobs is not None
        body: dict[str, Any] = {
            "prompt": list(asked.ids),
            "n_predict": asked.max_tokens,
            "temperature": asked.temperature,
            "top_p": asked.top_p,
            "top_k": 0,
            "min_p": 0.0,
            "repeat_penalty": 1.0,
            "samplers": _SAMPLERS,
            "cache_prompt": True,
            "return_tokens": True,
            # Log-probabilities of recovered ids are not to be had, so nothing is streamed then.
            "stream": not wants_logprobs,
            "return_progress": True,
            "response_fields": _REPORTED,
        }
        if asked.seed is not None:
            body["seed"] = asked.seed & 0xFFFFFFFF
        if asked.top_logprobs is not None:
            body["n_probs"] = max(1, asked.top_logprobs)
            # Of the distribution itself, not of what the sampler has left of it.
            body["post_sampling_probs"] = False
        if asked.constraint is not None:
            body.update(self._grammar.fields_for(asked.constraint))
        return body

    async def _request(self, body: dict[str, Any], stretch: _Stretch) -> None:
        if not body["stream"]:
            answer = await self._client.whole(_PATH, body)
            stretch.take(_whole_piece(answer, body.get("n_probs", 0)))
            return
        seen = 0

        def take(batch: list[dict[str, Any]]) -> bool:
            nonlocal seen
            ids: list[int] = []
            cached: int | None = None
            for event in batch:
                if "stop_type" in event:
                    finish = _FINISH.get(event["stop_type"], "stop")
                    stretch.take(Piece(ids, (), finish, cached))
                    return False
                if "prompt_progress" in event:
                    cached = int(event["prompt_progress"]["cache"])
                    continue
                predicted = int(event["tokens_predicted"])
                try:
                    ids += self._ids(event, predicted - seen)
                except WithheldError:
                    stretch.take(Piece(ids, (), None, cached))
                    raise
                seen = predicted
            return stretch.take(Piece(ids, (), None, cached))

        await self._client.events(_PATH, body, take, stretch.taker)

    def _ids(self, event: dict[str, Any], count: int) -> list[int]:
        """The ids that an event stands for, the withheld ones too."""
        (last,) = event["tokens"]
        if count <= 1:
            return [last]
        return [*self._pieces.before(event["content"], last, count - 1), last]

    def state(self) -> EngineState:
        """Its own metrics say what it is doing."""
        return EngineState()

    async def close(self) -> None:
        """Close the connections."""
        await self._client.close()


class _Stretch:
    """What one request gives to an answer that may take several."""

    def __init__(self, asked: Generation, taker: Taker, think_close: int) -> None:
        self.taker, self.is_over = taker, False
        self._asked, self._think_close = asked, think_close
        self._ids = list(asked.ids)
        self._end = len(asked.ids) + asked.max_tokens

    def take(self, piece: Piece) -> bool:
        """Some more tokens; False: this request has given what it can."""
        if not (piece.ids or piece.finish or piece.cached_tokens is not None):
            return True
        piece, turns = self._until_schema(piece)
        self._ids += piece.ids
        if turns:
            assert self._asked.constraint is not None, "something waits for the reasoning's end"
            behind = replace(self._asked.constraint, thinking=False)
            self._asked = replace(self._asked, constraint=behind)
            self.is_over = not self.taker.take(piece)
            return False
        at_end = len(self._ids) >= self._end
        if at_end and piece.finish is None:
            piece = piece._replace(finish="length")
        self.is_over = piece.finish == "stop" or at_end
        goes_on = self.taker.take(piece if self.is_over else piece._replace(finish=None))
        self.is_over = self.is_over or not goes_on
        return not self.is_over

    def _until_schema(self, piece: Piece) -> tuple[Piece, bool]:
        """A piece up to where a JSON schema begins to hold, and whether it does."""
        constraint, closer = self._asked.constraint, self._think_close
        waits = constraint is not None and constraint.thinking and not constraint.has_calls
        if not waits or closer not in piece.ids:
            return piece, False
        end = list(piece.ids).index(closer) + 1
        cut = Piece(piece.ids[:end], piece.logprobs[:end], None, piece.cached_tokens)
        return cut._replace(top=piece.top[:end]), True

    def rest(self) -> Generation:
        """What is still to be asked for."""
        num_new = len(self._ids) - len(self._asked.ids)
        return replace(
            self._asked,
            ids=self._ids,
            max_tokens=self._asked.max_tokens - num_new,
            min_tokens=max(0, self._asked.min_tokens - num_new),
        )


class WithheldError(UpstreamError):
    """llama-server left ids out that cannot be recovered."""

    code = "upstream-withheld"


class PieceFinder:
    """Finds the ids of a few bytes."""

    def __init__(self, tokenizer: Any) -> None:
        self._table = table_for(tokenizer)
        self._size = tokenizer.get_vocab_size()
        self._ids: dict[bytes, int] | None = None

    def before(self, text: str, last: int, count: int) -> list[int]:
        """The `count` ids whose bytes, with those of the last, are a text.

        Raises:
            WithheldError: there are none, as when bytes that are no character came out as a mark.
        """
        data, tail = text.encode(), self._table.bytes_of(last)
        if last in self._table.markers:
            tail = b""
        found = self._split(data.removesuffix(tail), count) if data.endswith(tail) else None
        if found is None:
            raise WithheldError(f"llama-server withheld {count} ids of {text!r}")
        return found

    def _split(self, data: bytes, count: int) -> list[int] | None:
        if self._ids is None:
            numbers = (n for n in range(self._size) if n not in self._table.markers)
            self._ids = {self._table.bytes_of(number): number for number in numbers}
        if count == 0:
            return None if data else []
        for end in range(len(data) - count + 1, 0, -1):
            number = self._ids.get(data[:end])
            rest = self._split(data[end:], count - 1) if number is not None else None
            if number is not None and rest is not None:
                return [number, *rest]
        return None


def _whole_piece(answer: dict[str, Any], num_others: int) -> Piece:
    """A whole answer; it has no log-probabilities of tokens that end within a character."""
    ids, logprobs, top = answer["tokens"], [], []
    entries = list(reversed(answer.get("completion_probabilities") or []))
    for number in ids if entries else ():
        entry = entries.pop() if entries and entries[-1]["id"] == number else None
        logprobs.append(entry["logprob"] if entry else math.nan)
        others = entry["top_logprobs"][:num_others] if entry else ()
        top.append([(other["id"], other["logprob"]) for other in others])
    finish = _FINISH.get(answer["stop_type"], "stop")
    return Piece(ids, logprobs, finish, answer.get("timings/cache_n"), top)
