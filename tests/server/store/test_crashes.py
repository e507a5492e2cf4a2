"""Nothing that was sampled is lost: gateways are killed, engines die, disks fill up."""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest
from hypothesis import given
from hypothesis import strategies as st

from baleen.server.errors import TokenLogError
from baleen.server.store.token_log import TokenLog, about, scan
from baleen.server.upstreams.scripted import Line

from ..conftest import ASKED, Serve
from ..gateway_process import TEXT

PROCESS = Path(__file__).parents[1] / "gateway_process.py"
REASONING, _, CONTENT = TEXT.partition("</think>")


@contextmanager
def gateway(
    state_dir: Path, delay_s: float, max_file_bytes: int = 0
) -> Iterator[tuple[subprocess.Popen[str], str]]:
    """A gateway process and its address."""
    command = [sys.executable, str(PROCESS), str(state_dir), str(delay_s), str(max_file_bytes)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            yield process, f"http://127.0.0.1:{process.stdout.readline().strip()}"
        finally:
            process.kill()


def killed_in_mid_answer(state_dir: Path, **headers: str) -> str:
    """Stream an answer and kill the gateway in the middle; returns what the client saw."""
    seen = ""
    body = {"messages": ASKED, "stream": True}
    with (
        gateway(state_dir, 0.01) as (process, url),
        httpx.Client(base_url=url, timeout=20, trust_env=False) as http,
        http.stream("POST", "/v1/chat/completions", json=body, headers=headers) as response,
    ):
        for line in response.iter_lines():
            if line.startswith("data: {"):
                seen += json.loads(line[6:])["choices"][0]["delta"].get("content") or ""
            if len(seen) > 40:
                process.kill()
                process.wait()
                return seen
    raise AssertionError("the answer was over before it could be cut off")


@pytest.mark.parametrize("headers", [{}, {"idempotency-key": "k1"}])
def test_an_answer_goes_on_behind_its_last_token_after_kill_9(
    tmp_path: Path, headers: dict[str, str]
) -> None:
    seen = killed_in_mid_answer(tmp_path, **headers)
    with (
        gateway(tmp_path, 0.0) as (_, url),
        httpx.Client(base_url=url, timeout=20, trust_env=False) as http,
    ):
        body = {"messages": ASKED}
        answer = http.post("/v1/chat/completions", json=body, headers=headers).json()
        choice = answer["choices"][0]
        assert choice["message"]["content"] == CONTENT
        assert choice["message"]["content"].startswith(seen)
        assert choice["message"]["reasoning_content"] == REASONING
        resumed = choice["baleen"]["resumed_tokens"]
        assert 10 < resumed < answer["usage"]["completion_tokens"]
        again = http.post("/v1/chat/completions", json=body, headers=headers).json()
        repeated = again["choices"][0]["baleen"].get("resumed_tokens")
        assert repeated == (answer["usage"]["completion_tokens"] if headers else None)
        if headers:
            other = {"messages": [{"role": "user", "content": "other"}]}
            conflict = http.post("/v1/chat/completions", json=other, headers=headers)
            assert conflict.status_code == 409


def test_a_neighbour_that_is_running_goes_on_with_what_a_killed_gateway_has_begun(
    tmp_path: Path,
) -> None:
    """Several gateways on one folder: the client comes back to whichever is left."""
    with (
        gateway(tmp_path, 0.0) as (_, url),
        httpx.Client(base_url=url, timeout=20, trust_env=False) as http,
    ):
        other = {"messages": [{"role": "user", "content": "Something else."}]}
        assert http.post("/v1/chat/completions", json=other).status_code == 200
        seen = killed_in_mid_answer(tmp_path)
        answer = http.post("/v1/chat/completions", json={"messages": ASKED}).json()
        choice = answer["choices"][0]
        assert choice["message"]["content"] == CONTENT
        assert CONTENT.startswith(seen)
        assert 10 < choice["baleen"]["resumed_tokens"] < answer["usage"]["completion_tokens"]


async def test_an_engine_that_dies_in_mid_stream_is_asked_to_go_on(serve: Serve) -> None:
    state = {"asked": 0}

    def say(asked: Any) -> Line:
        state["asked"] += 1
        ids = served.upstream._encoder.encode_text(CONTENT)
        said = len(asked.ids) - state.setdefault("prompt", len(asked.ids))
        return Line(ids[said:], breaks_after=15 if state["asked"] < 4 else None)

    served = await serve("")
    served.upstream.script = say
    body = await served.chat(thinking={"type": "disabled"})
    assert body["choices"][0]["message"]["content"] == CONTENT
    assert state["asked"] == 4
    metrics = (await served.http.get("/metrics")).text
    assert 'baleen:upstream_retries_total{model_name="deepseek-v4"} 3' in metrics


async def test_an_engine_that_keeps_dying_is_an_error_and_its_tokens_are_kept(
    serve: Serve, tmp_path: Path
) -> None:
    state = {"works": False}

    def say(asked: Any) -> Line:
        ids = served.upstream._encoder.encode_text(CONTENT)
        said = len(asked.ids) - state.setdefault("prompt", len(asked.ids))
        return Line(ids[said:], breaks_after=None if state["works"] else 3)

    served = await serve("", state_dir=tmp_path, upstream_retries=1)
    served.upstream.script = say
    body = {"messages": ASKED, "thinking": {"type": "disabled"}}
    failed = await served.post("/v1/chat/completions", body)
    assert failed.status_code == 502
    streamed = await served.post("/v1/chat/completions", {**body, "stream": True})
    assert '"error"' in streamed.text
    assert "[DONE]" not in streamed.text
    state["works"] = True
    whole = (await served.post("/v1/chat/completions", body)).json()["choices"][0]
    assert whole["message"]["content"] == CONTENT
    assert whole["baleen"]["resumed_tokens"] >= 6


async def test_a_key_that_is_being_answered_is_a_conflict_also_when_streamed(
    serve: Serve, tmp_path: Path
) -> None:
    served = await serve(lambda _: Line("a</think>b", delay_s=0.1), state_dir=tmp_path)
    path, body = "/v1/chat/completions", {"messages": ASKED, "stream": True}
    headers = {"idempotency-key": "k"}
    first, second = await asyncio.gather(
        served.http.post(path, json=body, headers=headers),
        served.http.post(path, json=body, headers=headers),
    )
    assert sorted((first.status_code, second.status_code)) == [200, 409]
    assert served.gateway.running == set()


async def test_a_silent_engine_is_asked_once_more_and_labelled(serve: Serve) -> None:
    def say(asked: Any) -> Line:
        ids = served.upstream._encoder.encode_text(CONTENT)
        said = len(asked.ids) - state.setdefault("prompt", len(asked.ids))
        return Line(ids[said:], stalls_after=5 if said == 0 else None)

    state: dict[str, int] = {}
    served = await serve("", upstream_options={"stall_timeout_s": 0.1})
    served.upstream.script = say
    choice = (await served.chat(thinking={"type": "disabled"}))["choices"][0]
    assert choice["message"]["content"] == CONTENT
    assert choice["baleen"]["stall_kind"] == "no_bytes"


def test_a_full_disk_costs_the_records_and_not_the_answers(tmp_path: Path) -> None:
    with (
        gateway(tmp_path, 0.0, max_file_bytes=40_000) as (_, url),
        httpx.Client(base_url=url, timeout=20, trust_env=False) as http,
    ):
        for number in range(40):
            body = {"messages": [{"role": "user", "content": f"question {number}"}]}
            answer = http.post("/v1/chat/completions", json=body).json()
            assert answer["choices"][0]["message"]["content"] == CONTENT
        metrics = http.get("/metrics").text
    (line,) = [x for x in metrics.splitlines() if x.startswith("baleen:store_errors_total{")]
    assert float(line.split()[-1]) > 0


def record(log: TokenLog, key: str, *, named: bool = False) -> Any:
    return log.begin(about(key, f"digest of {key}", 5, {"episode": "e"}, named=named))


def test_a_log_is_taken_over_only_from_the_dead(tmp_path: Path) -> None:
    alive = TokenLog(tmp_path)
    log_record = record(alive, "a")
    alive.append(log_record, [1, 2, 3], [-0.5, -0.25, -0.125])
    other = TokenLog(tmp_path)
    assert other.find("a") is None
    os.close(alive._descriptor)
    alive._descriptor = -1
    heir = TokenLog(tmp_path)
    found = heir.find("a")
    assert found is not None
    assert (found.ids, found.logprobs) == ([1, 2, 3], [-0.5, -0.25, -0.125])
    heir.take(found)
    heir.append(found, [4], [-1.0])
    heir.cut(found, 2)
    heir.end(found, {"finish": "stop", "calls": []})
    assert heir.num_unfinished == 0
    other.close()
    heir.close()


@given(cut=st.integers(0, 400))
def test_a_log_cut_at_any_byte_keeps_its_whole_records(
    tmp_path_factory: pytest.TempPathFactory, cut: int
) -> None:
    folder = tmp_path_factory.mktemp("log")
    log = TokenLog(folder)
    log_record = record(log, "a")
    for number in range(10):
        log.append(log_record, [number], [])
    data = log._path.read_bytes()
    log._path.write_bytes(data[: max(0, len(data) - cut)])
    found = scan(log._path)
    ids = found[0].ids if found else []
    assert ids == list(range(len(ids)))
    os.close(log._descriptor)


def test_a_log_that_has_grown_moves_what_is_needed(tmp_path: Path) -> None:
    log = TokenLog(tmp_path, max_file_bytes=2_000)
    kept, named = record(log, "kept"), record(log, "named", named=True)
    log.append(kept, [7, 8], [])
    log.append(named, [9], [])
    log.end(named, {"finish": "stop", "calls": []})
    for number in range(50):
        other = record(log, str(number))
        log.append(other, list(range(100)), [])
        log.end(other, {"finish": "stop", "calls": []})
    assert sum(path.stat().st_size for path in tmp_path.iterdir()) < 10_000
    os.close(log._descriptor)
    log._descriptor = -1
    heir = TokenLog(tmp_path)
    assert {found.key: found.ids for found in heir._known.values()} == {
        "kept": [7, 8],
        "named": [9],
    }
    heir.close()


def test_a_log_of_another_version_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "tokens-00.log"
    path.write_bytes(b"BLNTOK\x00\x02")
    with pytest.raises(TokenLogError, match="version 1"):
        scan(path)
