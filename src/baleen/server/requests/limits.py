"""How long an answer may get, and how it is sampled, where a request leaves it open."""

from __future__ import annotations

from typing import Final, NamedTuple

from baleen.server.config import GatewayConfig
from baleen.server.errors import BadRequestError
from baleen.server.requests.ask import Ask

_CHAT_TOKENS: Final = 8_192
_THINKING_TOKENS: Final = 65_536
_MAX_EFFORT_TOKENS: Final = 131_072
_TOP_P_WITH_TOOLS: Final = 0.95


class Sampling(NamedTuple):
    """How tokens are drawn."""

    temperature: float
    top_p: float


def check_context(ask: Ask, num_prompt_tokens: int, context_tokens: int) -> None:
    """A request that names ``max_tokens`` has to fit with them, any other with its prompt alone.

    Raises:
        BadRequestError: it does not, in the words by which clients know that they must compact.
    """
    asked = ask.max_tokens or 0
    if num_prompt_tokens + asked > context_tokens or num_prompt_tokens >= context_tokens:
        raise BadRequestError(
            f"This model's maximum context length is {context_tokens} tokens. However, you"
            f" requested {num_prompt_tokens + asked} tokens ({num_prompt_tokens} in the messages,"
            f" {asked} in the completion). Please reduce the length of the messages or completion."
        )


def max_tokens_for(ask: Ask, num_prompt_tokens: int, context_tokens: int) -> int:
    """The most tokens that the answer may have, at least 1."""
    default = _CHAT_TOKENS
    if ask.thinking:
        is_max = ask.options["effort"] in ("max", "ultra")
        default = _MAX_EFFORT_TOKENS if is_max else _THINKING_TOKENS
    return max(1, min(ask.max_tokens or default, context_tokens - num_prompt_tokens))


def sampling_for(ask: Ask, config: GatewayConfig) -> Sampling:
    """Temperature and nucleus: fixed while thinking where the gateway says so."""
    if ask.thinking and config.forces_sampling:
        narrows = ask.shows_tools and config.revision != "v4.1"
        return Sampling(1.0, _TOP_P_WITH_TOOLS if narrows else 1.0)
    temperature = config.temperature if ask.temperature is None else ask.temperature
    return Sampling(temperature, 1.0 if ask.top_p is None else ask.top_p)
