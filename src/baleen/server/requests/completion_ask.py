"""A Completions request, read."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

from baleen.protocol.errors import expect_object
from baleen.protocol.grammar import AnswerForm
from baleen.server.config import GatewayConfig
from baleen.server.errors import BadRequestError
from baleen.server.requests.answer_form import read_form
from baleen.server.requests.fields import check_one, integer, ranged, stops_of

_DEFAULT_MAX_TOKENS: Final = 16
_MAX_LOGPROBS: Final = 20


@dataclass(frozen=True, slots=True)
class CompletionAsk:
    """One request for tokens behind a prompt."""

    prompt: Any
    model: str
    max_tokens: int
    temperature: float
    top_p: float
    seed: int | None
    min_tokens: int
    stop: tuple[str, ...]
    logprobs: int | None
    """None: none; 0: those of the tokens; above: of as many others too."""
    echo: bool
    """The prompt stands in front of what is sampled."""
    stream: bool
    includes_usage: bool
    returns_ids: bool
    form: AnswerForm | None

    @property
    def scores_prompt(self) -> bool:
        """Whether the log-probabilities of the prompt are wanted."""
        return self.echo and self.logprobs is not None


def read_completion(body: Mapping[str, Any], config: GatewayConfig) -> CompletionAsk:
    """Read a request.

    Raises:
        BadRequestError: a field that cannot be honoured.
        MessageError: a field of the wrong type.
    """
    check_one(body, "n")
    check_one(body, "best_of")
    if body.get("suffix"):
        raise BadRequestError("`suffix` is not supported: the model only goes on")
    temperature = ranged(body, "temperature", 0.0, 2.0)
    stream_options = expect_object(body.get("stream_options"), "stream_options")
    top_p = ranged(body, "top_p", 0.0, 1.0)
    return CompletionAsk(
        prompt=body.get("prompt"),
        model=str(body.get("model") or config.model_name),
        max_tokens=_max_tokens(body, config),
        temperature=config.temperature if temperature is None else temperature,
        top_p=1.0 if top_p is None else top_p,
        seed=integer(body, "seed"),
        min_tokens=max(0, integer(body, "min_tokens") or 0),
        stop=stops_of(body.get("stop")),
        logprobs=_logprobs(body),
        echo=bool(body.get("echo")),
        stream=bool(body.get("stream")),
        includes_usage=bool(stream_options.get("include_usage")),
        returns_ids=bool(body.get("return_token_ids")),
        form=read_form(body),
    )


def _max_tokens(body: Mapping[str, Any], config: GatewayConfig) -> int:
    given = integer(body, "max_tokens")
    if given is None:
        return _DEFAULT_MAX_TOKENS
    # Whoever only wants a prompt scored samples nothing.
    least = 0 if body.get("echo") else 1
    if not least <= given <= config.max_tokens_limit:
        raise BadRequestError(
            "Invalid max_tokens value, the valid range of max_tokens is"
            f" [1, {config.max_tokens_limit}]"
        )
    return given


def _logprobs(body: Mapping[str, Any]) -> int | None:
    given = body.get("logprobs")
    if given is None or given is False:
        return None
    if given is True:
        return 0
    number = integer(body, "logprobs") or 0
    if not 0 <= number <= _MAX_LOGPROBS:
        raise BadRequestError(
            f"Invalid logprobs value, the valid range of logprobs is [0, {_MAX_LOGPROBS}]"
        )
    return number
