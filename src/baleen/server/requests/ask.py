"""A request as the gateway sees it, whatever dialect it came in.

Every dialect is turned into a Chat Completions body first, so this file is the one place where
fields of requests are read. What is wrong is refused in the hosted API's words, because clients
tell errors apart by them.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from time import monotonic
from typing import TYPE_CHECKING, Any

from baleen.protocol.chat import encode_options
from baleen.protocol.errors import expect_object
from baleen.protocol.grammar import AnswerForm
from baleen.server.config import GatewayConfig
from baleen.server.errors import BadRequestError
from baleen.server.requests.answer_form import read_form
from baleen.server.requests.fields import check_one, integer, ranged, stops_of

if TYPE_CHECKING:
    from baleen.server.observing.tracing import RequestTrace

Body = dict[str, Any]

_MAX_TOP_LOGPROBS = 20


@dataclass(slots=True)
class Ask:
    """One request for one answer."""

    messages: list[Any]
    options: Body
    """Arguments for :meth:`baleen.protocol.Encoder.encode` beside the messages."""
    model: str = ""
    continues: bool = False
    """The answer goes on with the last message."""
    max_tokens: int | None = None
    temperature: float | None = None
    top_p: float | None = None
    seed: int | None = None
    stop: tuple[str, ...] = ()
    stream: bool = False
    includes_usage: bool = False
    top_logprobs: int | None = None
    thinking_budget: int | None = None
    parallel: bool = True
    form: AnswerForm | None = None
    """What the answer has to look like."""
    returns_ids: bool = False
    scope: str = ""
    """Whose turns these are; one per API key."""
    key: str = ""
    """Idempotency key; the same request under the same key gets the same answer."""
    arrived_at: float = field(default_factory=monotonic)
    """By the monotonic clock."""
    trace: RequestTrace | None = None
    place: Mapping[str, str] = field(default_factory=dict)
    """Episode and turn that a caller names, to join the token log with a sandbox's log."""

    @property
    def thinking(self) -> bool:
        """Whether the model is to think."""
        return bool(self.options["thinking"]) and self.options["effort"] != "none"

    @property
    def shows_tools(self) -> bool:
        """Whether the prompt carries a Tools block."""
        return bool(self.options["tools"]) and self.options["tool_choice"] != "none"


def read_ask(body: Mapping[str, Any], config: GatewayConfig, *, clamps: bool = False) -> Ask:
    """Read a Chat Completions body; ``clamps`` lowers a ``max_tokens`` that is too large.

    Raises:
        BadRequestError: a field that cannot be honoured.
        MessageError: a field of the wrong type.
    """
    options = encode_options(body)
    messages = options.pop("messages")
    if not isinstance(messages, list):
        raise BadRequestError("`messages` must be a list")
    if options["effort"] is None:
        options["effort"] = config.effort
    stream_options = expect_object(body.get("stream_options"), "stream_options")
    last = messages[-1] if messages else None
    check_one(body, "n")
    ask = Ask(
        messages=messages,
        options=options,
        model=str(body.get("model") or ""),
        continues=isinstance(last, Mapping) and bool(last.get("prefix")),
        max_tokens=_max_tokens(body, config, clamps=clamps),
        temperature=ranged(body, "temperature", 0.0, 2.0),
        top_p=ranged(body, "top_p", 0.0, 1.0),
        seed=integer(body, "seed"),
        stop=stops_of(body.get("stop")),
        stream=bool(body.get("stream")),
        includes_usage=bool(stream_options.get("include_usage")),
        top_logprobs=_top_logprobs(body),
        thinking_budget=_budget(body),
        parallel=body.get("parallel_tool_calls") is not False,
        form=read_form(body),
        returns_ids=bool(body.get("return_token_ids")),
    )
    if config.refuses_forced_thinking and ask.thinking and _forces(options["tool_choice"]):
        raise BadRequestError("Thinking mode does not support this tool_choice")
    return ask


def _forces(choice: Any) -> bool:
    return choice == "required" or isinstance(choice, Mapping)


def _max_tokens(body: Mapping[str, Any], config: GatewayConfig, *, clamps: bool) -> int | None:
    name = "max_tokens" if body.get("max_tokens") is not None else "max_completion_tokens"
    given = integer(body, name)
    limit = config.max_tokens_limit
    if given is None or 1 <= given <= limit:
        return given
    if clamps:
        return max(1, min(given, limit))
    raise BadRequestError(
        f"Invalid max_tokens value, the valid range of max_tokens is [1, {limit}]"
    )


def _top_logprobs(body: Mapping[str, Any]) -> int | None:
    if not body.get("logprobs"):
        return None
    number = integer(body, "top_logprobs") or 0
    if not 0 <= number <= _MAX_TOP_LOGPROBS:
        raise BadRequestError(
            f"Invalid top_logprobs value, the valid range of top_logprobs is"
            f" [0, {_MAX_TOP_LOGPROBS}]"
        )
    return number


def _budget(body: Mapping[str, Any]) -> int | None:
    budget = integer(body, "thinking_token_budget")
    if budget is None:
        budget = integer(expect_object(body.get("thinking"), "thinking"), "budget_tokens")
    if budget is not None and budget < 0:
        raise BadRequestError("`thinking_token_budget` must not be negative")
    return budget
