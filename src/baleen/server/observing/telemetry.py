"""Which metrics a gateway has: vLLM's names where the meaning is equal, and those of agents."""

from __future__ import annotations

from collections.abc import Callable

from baleen.server.observing.metrics import Registry

_SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 300)
_TOKEN_SECONDS = (0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.5, 1, 5)
_TOKENS = (1, 10, 100, 1_000, 2_000, 5_000, 10_000, 20_000, 50_000, 100_000, 200_000, 500_000, 1e6)


class Telemetry:
    """The metrics of one gateway."""

    def __init__(self, model_name: str, num_running: Callable[[], int]) -> None:
        self.registry = registry = Registry({"model_name": model_name})
        vllm, ours = "vllm:", "baleen:"
        count, spread = registry.counter, registry.histogram
        registry.gauge(f"{vllm}num_requests_running", "Answers being generated.", num_running)
        registry.gauge(f"{vllm}num_requests_waiting", "Always 0: upstreams queue.", lambda: 0)
        self.prompt_tokens = count(f"{vllm}prompt_tokens_total", "Prompt tokens.")
        self.prompt_tokens_cached = count(
            f"{vllm}prompt_tokens_cached_total", "Prompt tokens that the upstream had in its cache."
        )
        self.generation_tokens = count(f"{vllm}generation_tokens_total", "Sampled tokens.")
        self.prefix_queries = count(
            f"{vllm}prefix_cache_queries_total", "Prompt tokens looked up in the prefix cache."
        )
        self.prefix_hits = count(f"{vllm}prefix_cache_hits_total", "Prompt tokens found there.")
        self.success = count(
            f"{vllm}request_success_total", "Answers, by how they ended.", "finished_reason"
        )
        self.first_token_s = spread(
            f"{vllm}time_to_first_token_seconds", "From request to first token.", _SECONDS
        )
        self.inter_token_s = spread(
            f"{vllm}inter_token_latency_seconds", "Between tokens.", _TOKEN_SECONDS
        )
        self.request_s = spread(
            f"{vllm}e2e_request_latency_seconds", "From request to last token.", _SECONDS
        )
        self.decode_s = spread(
            f"{vllm}request_decode_time_seconds", "From first token to last.", _SECONDS
        )
        self.request_prompt = spread(
            f"{vllm}request_prompt_tokens", "Prompt tokens per request.", _TOKENS
        )
        self.request_generated = spread(
            f"{vllm}request_generation_tokens", "Sampled tokens per request.", _TOKENS
        )
        self.rejections = count(
            f"{vllm}admission_rejections_total", "Requests refused, by error code.", "code"
        )
        self.calls = count(f"{ours}tool_calls_total", "Tool calls, by how they came.", "result")
        self.repairs = count(f"{ours}tool_repair_total", "Repairs of calls, by kind.", "kind")
        self.leaks = count(
            f"{ours}marker_leak_total", "Marker tokens in reasoning or content; must stay 0."
        )
        self.restored = count(
            f"{ours}reasoning_restored_total", "Turns whose reasoning a client had dropped."
        )
        self.missing = count(
            f"{ours}reasoning_missing_total", "Turns without reasoning that nobody has kept."
        )
        self.replayed = count(f"{ours}turns_replayed_total", "Turns rendered as sampled.")
        self.edited = count(f"{ours}turns_edited_total", "Turns that a client had changed.")
        self.breaks = count(f"{ours}prefix_break_total", "Broken prefixes, by reason.", "reason")
        self.reusable = count(
            f"{ours}reusable_tokens_total", "Tokens of the conversation computed before."
        )
        self.reused = count(
            f"{ours}reused_tokens_total", "Of these, those that the new prompt begins with."
        )
        self.stalls = count(f"{ours}stall_total", "Stalls, by kind.", "kind")
        self.recoveries = count(f"{ours}recovery_total", "Stalled turns decoded again.", "kind")
        self.think_tokens = count(f"{ours}think_tokens_total", "Tokens of reasoning.")
        self.budget_closes = count(
            f"{ours}thinking_closed_total", "Reasoning closed from outside, by reason.", "reason"
        )
        self.upstream_retries = count(
            f"{ours}upstream_retries_total", "Streams continued after the upstream broke off."
        )
        self.resumed = count(
            f"{ours}resumed_total", "Answers continued from the token log after a crash."
        )
        self.resumed_tokens = count(
            f"{ours}resumed_tokens_total", "Tokens that did not have to be sampled again."
        )
        self.disconnects = count(f"{ours}disconnects_total", "Clients that left in mid-answer.")
        self.store_errors = count(
            f"{ours}store_errors_total", "Turns or tokens that could not be written down."
        )

    def count_prompt(self, num_tokens: int, num_cached: int) -> None:
        """A prompt has been computed, but for what the upstream had in its cache."""
        self.prompt_tokens.add(num_tokens)
        self.prompt_tokens_cached.add(num_cached)
        self.prefix_queries.add(num_tokens)
        self.prefix_hits.add(num_cached)
        self.request_prompt.observe(num_tokens)
