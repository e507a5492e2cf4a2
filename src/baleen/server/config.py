"""How a gateway behaves; the defaults are those of the hosted API."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class GatewayConfig:
    """One per gateway; requests cannot change it."""

    model_name: str = "deepseek-v4"
    revision: str = "0731"
    flavor: str = "api"
    repair: str = "schema"
    effort: str | None = None
    """Effort of requests that name none; None is the flavor's default."""
    forces_sampling: bool = True
    """Thinking fixes temperature and top_p, as the hosted API does."""
    temperature: float = 1.0
    """For requests that name none."""
    max_model_len: int | None = None
    """No prompt and answer may have more tokens together, whatever the upstream allows."""
    max_tokens_limit: int = 393_216
    """The largest ``max_tokens`` that a request may ask for."""
    thinking_budget: int | None = None
    """Tokens of reasoning after which it is closed; None leaves it to the request."""
    loop_closes: bool = True
    """Close reasoning that repeats itself; it is labelled either way."""
    recovers: bool = True
    """Decode once more, end-of-sentence masked, where a turn ended without an answer."""
    uses_grammar: bool = True
    """Hold calls and JSON answers to their schemas where the upstream can."""
    emits_reasoning_twice: bool = False
    """Emit ``reasoning`` beside ``reasoning_content``; vLLM's clients read the former."""
    rejects_missing_reasoning: bool = False
    """Refuse histories without reasoning, as the hosted API may, instead of restoring it."""
    refuses_forced_thinking: bool = False
    """Refuse a forced tool choice while thinking, as the hosted API does."""
    stall_timeout_s: float = 300.0
    """Silence of the upstream after which it is asked again, once, and then given up."""
    keep_alive_s: float = 10.0
    """Silence after which a stream gets a comment."""
    upstream_retries: int = 3
    """How often a stream that broke off is continued from its recorded tokens."""
    max_body_bytes: int = 64 << 20
    body_timeout_s: float = 30.0
    """A request has to arrive within as many seconds."""
    max_running: int = 1024
    """Answers at once; more are refused with 429."""
    max_connections: int = 4096
    drain_timeout_s: float = 30.0
    api_keys: tuple[str, ...] = ()
    """Keys that are let in; none lets everybody in."""
    state_dir: Path | None = None
    """Where turns and tokens are kept; None keeps turns in memory and no token log."""
    replay_bytes: int = 1 << 30
    """Bound on the store of exact turns."""
    trace_dir: Path | None = None
    """Where every exchange is written down, in tokens; None writes nothing."""
    log_tokens: bool = True
    """Write every token down as it arrives, if there is a state folder."""
