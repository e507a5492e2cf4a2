"""Every name that dashboards and the specification know is there, and says what happened."""

from __future__ import annotations

import re
from typing import Any

import pytest

from baleen.server.upstreams.local import LocalUpstream
from baleen.server.upstreams.scripted import Line

from ..conftest import CALL, WEATHER, Serve, Served

VLLM = """
num_requests_running num_requests_waiting num_requests_waiting_by_reason kv_cache_usage_perc
prefix_cache_queries_total prefix_cache_hits_total external_prefix_cache_queries_total
external_prefix_cache_hits_total prompt_tokens_total prompt_tokens_cached_total
prompt_tokens_by_source_total generation_tokens_total num_preemptions_total request_success_total
time_to_first_token_seconds inter_token_latency_seconds request_time_per_output_token_seconds
e2e_request_latency_seconds request_queue_time_seconds request_prefill_time_seconds
request_decode_time_seconds request_inference_time_seconds request_prompt_tokens
request_generation_tokens request_params_max_tokens request_prefill_kv_computed_tokens
iteration_tokens_total kv_block_lifetime_seconds kv_block_idle_before_evict_seconds
kv_block_reuse_gap_seconds cache_config_info corrupted_requests_total admission_rejections_total
tool_call_parser_invocations_total
"""
UNUSED = """
num_preemptions_total external_prefix_cache_queries_total external_prefix_cache_hits_total
corrupted_requests_total kv_block_lifetime_seconds kv_block_idle_before_evict_seconds
kv_block_reuse_gap_seconds
"""
OURS = """
tool_calls_total tool_repair_total marker_leak_total reasoning_restored_total prefix_break_total
swa_recompute_tokens stall_total think_tokens_total
"""
LINE = re.compile(r'^([a-z0-9_:]+)\{((?:[a-z_]+="[^"]*",?)*)\} (\d+(?:\.\d+)?(?:e[-+]\d+)?)$')


async def samples(served: Served) -> dict[str, float]:
    """Each sample by its name and the labels beside the model's name."""
    response = await served.http.get("/metrics")
    assert response.headers["content-type"].startswith("text/plain")
    found: dict[str, float] = {}
    for line in response.text.splitlines():
        if line.startswith("#"):
            continue
        match = LINE.match(line)
        assert match is not None, line
        name, labels, value = match.groups()
        assert 'model_name="' in labels, line
        rest = ",".join(part for part in labels.split(",") if not part.startswith("model_name"))
        found[f"{name}{{{rest}}}" if rest else name] = float(value)
    return found


async def test_all_names_are_there(serve: Serve) -> None:
    served = await serve(CALL)
    text = (await served.http.get("/metrics")).text
    for prefix, names in (("vllm:", VLLM), ("baleen:", OURS)):
        for name in names.split():
            assert re.search(rf"^# TYPE {prefix}{name} (counter|gauge|histogram)$", text, re.M), (
                name
            )


async def test_names_that_are_never_filled_say_so_and_no_others(serve: Serve) -> None:
    served = await serve(CALL)
    text = (await served.http.get("/metrics")).text
    helps = dict(re.findall(r"^# HELP (\S+) (.+)$", text, re.M))
    assert set(helps) == set(re.findall(r"^# TYPE (\S+) ", text, re.M))
    never_filled = {name for name, what in helps.items() if "never filled" in what}
    assert never_filled == {f"vllm:{name}" for name in UNUSED.split()}


async def test_they_say_what_happened(serve: Serve) -> None:
    served = await serve(lambda _: Line(CALL, delay_s=0.002))
    fields: dict[str, Any] = {"tools": [WEATHER], "max_tokens": 500}
    first = await served.chat(**fields)
    second = await served.chat(**fields)
    usage = [body["usage"] for body in (first, second)]
    found = await samples(served)
    num_prompt = sum(each["prompt_tokens"] for each in usage)
    num_cached = usage[1]["prompt_tokens_details"]["cached_tokens"]
    assert num_cached > 0
    num_sampled = sum(each["completion_tokens"] for each in usage)
    expected = {
        "vllm:num_requests_running": 0,
        "vllm:prompt_tokens_total": num_prompt,
        "vllm:prefix_cache_queries_total": num_prompt,
        "vllm:prefix_cache_hits_total": num_cached,
        "vllm:prompt_tokens_cached_total": num_cached,
        'vllm:prompt_tokens_by_source_total{source="local_compute"}': num_prompt - num_cached,
        'vllm:prompt_tokens_by_source_total{source="local_cache_hit"}': num_cached,
        "vllm:generation_tokens_total": num_sampled,
        'vllm:request_success_total{finished_reason="tool_calls"}': 2,
        "vllm:time_to_first_token_seconds_count": 2,
        "vllm:inter_token_latency_seconds_count": num_sampled - 2,
        "vllm:iteration_tokens_total_sum": num_sampled,
        "vllm:request_params_max_tokens_sum": 1_000,
        "vllm:request_prefill_kv_computed_tokens_sum": num_prompt - num_cached,
        "vllm:tool_call_parser_invocations_total": 2,
        'baleen:tool_calls_total{result="clean"}': 4,
        "baleen:marker_leak_total": 0,
        "baleen:think_tokens_total": sum(
            each["completion_tokens_details"]["reasoning_tokens"] for each in usage
        ),
    }
    assert {name: found.get(name) for name in expected} == expected
    # An answer is its way to the engine, the prompt, and the tokens behind the first.
    parts = ("queue", "prefill", "decode")
    sums = [found[f"vllm:request_{part}_time_seconds_sum"] for part in parts]
    assert all(each > 0 for each in sums)
    assert sum(sums) == pytest.approx(found["vllm:e2e_request_latency_seconds_sum"])
    assert found["vllm:request_inference_time_seconds_sum"] == pytest.approx(sum(sums[1:]))


async def test_a_refusal_is_counted_by_its_code(serve: Serve) -> None:
    served = await serve(CALL)
    await served.post("/v1/chat/completions", {"messages": []})
    await served.http.get("/nowhere")
    found = await samples(served)
    assert found['vllm:admission_rejections_total{code="bad-message"}'] == 1
    assert found['vllm:admission_rejections_total{code="no-such-path"}'] == 1


async def test_a_model_in_this_process_tells_how_full_it_is(serve: Serve) -> None:
    served = await serve(LocalUpstream.load("nano", "0731"))
    assert (await samples(served))["vllm:kv_cache_usage_perc"] == 0

    async def complete(prompt: list[int]) -> None:
        body = {"model": "nano", "prompt": prompt, "max_tokens": 4}
        assert (await served.http.post("/v1/completions", json=body)).status_code == 200

    past = list(range(100, 150))
    await complete(past)
    found = await samples(served)
    assert 0 < found["vllm:kv_cache_usage_perc"] < 0.01
    assert found["baleen:swa_recompute_tokens"] == 0
    # A changed past: the session returns to a mark before the change and computes from there.
    await complete([*past[:30], *past[:30]])
    found = await samples(served)
    assert found["baleen:swa_recompute_tokens"] == 30
    assert found["vllm:num_requests_waiting"] == 0
