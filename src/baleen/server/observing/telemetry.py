"""Which metrics a gateway has: vLLM's names where the meaning is equal, and those of agents."""

from __future__ import annotations

from collections.abc import Callable

from baleen.server.base import EngineState
from baleen.server.observing.metrics import Registry

_UNUSED = "never filled, here so that dashboards of vLLM find the name."
_SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 300)
_TOKEN_SECONDS = (0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.5, 1, 5)
_TOKENS = (1, 10, 100, 1_000, 2_000, 5_000, 10_000, 20_000, 50_000, 100_000, 200_000, 500_000, 1e6)


class Telemetry:
    """The metrics of one gateway."""

    def __init__(
        self,
        model_name: str,
        num_running: Callable[[], int],
        state: Callable[[], EngineState] = EngineState,
    ) -> None:
        self.registry = registry = Registry({"model_name": model_name})
        vllm, ours = "vllm:", "baleen:"
        count, spread = registry.counter, registry.histogram
        registry.gauge(f"{vllm}num_requests_running", "Answers being generated.", num_running)
        registry.gauge(
            f"{vllm}num_requests_waiting",
            "Answers that wait for a model in this process; engines elsewhere queue themselves.",
            lambda: state().num_waiting,
        )
        registry.gauge(
            f"{vllm}num_requests_waiting_by_reason",
            "The same, by reason.",
            lambda: state().num_waiting,
            reason="capacity",
        )
        registry.gauge(
            f"{vllm}kv_cache_usage_perc",
            "Share of the cache of a model in this process that is taken, 0 to 1.",
            lambda: state().cache_usage,
        )
        self.prompt_tokens = count(f"{vllm}prompt_tokens_total", "Prompt tokens.")
        self.prompt_tokens_cached = count(
            f"{vllm}prompt_tokens_cached_total", "Prompt tokens that the upstream had in its cache."
        )
        self.prompt_tokens_by_source = count(
            f"{vllm}prompt_tokens_by_source_total", "Prompt tokens, by where from.", "source"
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
        self.queue_s = spread(
            f"{vllm}request_queue_time_seconds", "From request to asking the upstream.", _SECONDS
        )
        self.prefill_s = spread(
            f"{vllm}request_prefill_time_seconds",
            "From asking the upstream to the first token, its own queue included.",
            _SECONDS,
        )
        self.inference_s = spread(
            f"{vllm}request_inference_time_seconds", "From asking to the last token.", _SECONDS
        )
        self.output_token_s = spread(
            f"{vllm}request_time_per_output_token_seconds", "Mean of an answer.", _TOKEN_SECONDS
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
        self.request_max_tokens = spread(
            f"{vllm}request_params_max_tokens", "Tokens that an answer might have had.", _TOKENS
        )
        self.request_computed = spread(
            f"{vllm}request_prefill_kv_computed_tokens",
            "Prompt tokens per request that the upstream did not have in its cache.",
            _TOKENS,
        )
        self.together = spread(
            f"{vllm}iteration_tokens_total", "Tokens of an answer that came together.", _TOKENS
        )
        self.parsers = count(
            f"{vllm}tool_call_parser_invocations_total", "Answers that might hold calls."
        )
        self._add_unused()
        self.rejections = count(
            f"{vllm}admission_rejections_total", "Requests refused, by error code.", "code"
        )
        registry.gauge(
            f"{ours}swa_recompute_tokens",
            "Prompt tokens that a model in this process had computed before and computed again.",
            lambda: state().num_recomputed,
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

    def _add_unused(self) -> None:
        """Names of vLLM that dashboards ask for, of things that a gateway never does."""
        for name, what in (
            ("num_preemptions", "Answers put off for others"),
            ("external_prefix_cache_queries", "Prompt tokens looked up in another process's cache"),
            ("external_prefix_cache_hits", "Prompt tokens found in another process's cache"),
            ("corrupted_requests", "Answers computed from numbers that are none"),
        ):
            self.registry.counter(f"vllm:{name}_total", f"{what}: {_UNUSED}")
        for name, what in (
            ("lifetime", "How long a block of the cache lived"),
            ("idle_before_evict", "How long a block lay unused before it went"),
            ("reuse_gap", "How long a block lay between two uses"),
        ):
            self.registry.histogram(f"vllm:kv_block_{name}_seconds", f"{what}: {_UNUSED}", _SECONDS)

    def count_prompt(self, num_tokens: int, num_cached: int) -> None:
        """A prompt has been computed, but for what the upstream had in its cache."""
        self.prompt_tokens_by_source.add(num_tokens - num_cached, "local_compute")
        self.prompt_tokens_by_source.add(num_cached, "local_cache_hit")
        self.request_computed.observe(num_tokens - num_cached)
        self.prompt_tokens.add(num_tokens)
        self.prompt_tokens_cached.add(num_cached)
        self.prefix_queries.add(num_tokens)
        self.prefix_hits.add(num_cached)
        self.request_prompt.observe(num_tokens)
