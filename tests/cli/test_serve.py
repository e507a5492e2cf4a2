"""`baleen serve` as a command: it answers, tells where, and ends well."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import httpx
import pytest

from baleen.cli.main import main

QUESTION = {"messages": [{"role": "user", "content": "What is 12 * 12?"}], "max_tokens": 8}
LONG = {"type": "array", "items": {"type": "integer"}, "minItems": 150, "maxItems": 150}
ENDLESS = {
    "type": "function",
    "function": {
        "name": "count",
        "parameters": {"type": "object", "properties": {"to": LONG}, "required": ["to"]},
    },
}
"""A call to it takes nano some seconds."""


@contextmanager
def serving(home: Path, *options: str) -> Iterator[tuple[subprocess.Popen[str], httpx.Client]]:
    """`baleen serve nano` in a process of its own, and a client of it."""
    command = [sys.executable, "-m", "baleen.cli.main", "serve", "nano", "--port", "0", *options]
    env = {**os.environ, "BALEEN_HOME": str(home)}
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env=env) as process:
        try:
            assert process.stderr is not None
            line = process.stderr.readline().strip()
            assert line.startswith("baleen: serving nano at http://127.0.0.1:")
            url = line.rpartition(" ")[2]
            with httpx.Client(base_url=url, timeout=60, trust_env=False) as http:
                yield process, http
        finally:
            process.kill()


@pytest.mark.parametrize("signals", [1, 2])
def test_ctrl_c_finishes_what_has_begun_and_a_second_one_breaks_it_off(
    tmp_path: Path, signals: int
) -> None:
    fields = {**QUESTION, "stream": True, "max_tokens": 3500, "tools": [ENDLESS]}
    fields |= {"tool_choice": "required", "thinking": {"type": "disabled"}, "temperature": 1.0}
    with serving(tmp_path) as (process, http):
        assert process.stderr is not None
        with (
            suppress(httpx.RemoteProtocolError),
            http.stream("POST", "/v1/chat/completions", json=fields) as stream,
        ):
            lines = stream.iter_lines()
            next(lines)
            process.send_signal(signal.SIGINT)
            line = process.stderr.readline()
            assert line == ("baleen: finishing 1 answer, taking no more; Ctrl-C again to end now\n")
            if signals == 2:
                process.send_signal(signal.SIGINT)
            is_whole = "data: [DONE]" in list(lines)
        code = process.wait(30)
        rest = process.stderr.read()
    assert "Traceback" not in rest
    if signals == 1:
        assert is_whole
        assert code == 0
    else:
        assert code == 130
        assert rest.endswith("baleen: interrupted\n")


def test_nano_is_served_out_of_the_box_and_ends_on_sigterm(tmp_path: Path) -> None:
    with serving(tmp_path) as (process, http):
        answer = http.post("/v1/chat/completions", json=QUESTION).json()
        assert answer["usage"]["completion_tokens"] == 8
        again = http.post("/v1/chat/completions", json=QUESTION).json()
        assert again["choices"][0]["message"] == answer["choices"][0]["message"]
        process.send_signal(signal.SIGTERM)
        assert process.wait(30) == 0
    assert (tmp_path / "serve/nano/turns.db").is_file()
    assert not list((tmp_path / "serve/nano/tokens").iterdir())


def test_an_engine_that_is_not_there_is_named(capsys: object) -> None:
    assert main(["serve", "nano", "--no-state", "--upstream", "http://127.0.0.1:9"]) == 1


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--port", "99999"], "0<=x<=65535"),
        (["--revision", "v5"], "'preview', '0731', 'v4.1'"),
        (["--max-running", "0"], "x>=1"),
        (["--stall-timeout", "0"], "x>0"),
        (["--host", "192.0.2.1"], "give an address of this machine"),
        (["--host", "no.such.host.invalid"], "cannot listen on no.such.host.invalid:8000"),
        (["--upstream", "gpu-host"], "write it as http://HOST:PORT"),
    ],
)
def test_what_cannot_be_served_is_said_in_a_line(
    options: list[str], words: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["serve", "nano", "--no-state", *options]) == 2
    err = capsys.readouterr().err
    assert words in err
    assert "Traceback" not in err


def test_a_port_that_is_taken_is_named(capsys: pytest.CaptureFixture[str]) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        assert main(["serve", "nano", "--no-state", "--port", str(port)]) == 2
    err = capsys.readouterr().err
    assert f"cannot listen on 127.0.0.1:{port}: Address already in use" in err
    assert "--port 0" in err


def test_a_public_address_without_keys_is_warned_of(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "baleen.cli.main", "serve", "--host", "0.0.0.0", "--port", "0"]
    for keys, warned in (([], True), (["--api-key", "k"], False)):
        with subprocess.Popen(
            [*command, *keys],
            stderr=subprocess.PIPE,
            text=True,
            env={**os.environ, "BALEEN_HOME": str(tmp_path)},
        ) as process:
            assert process.stderr is not None
            line = process.stderr.readline()
            process.kill()
        assert ("WARNING" in line) == warned


def test_flags_reach_the_gateway(tmp_path: Path) -> None:
    options = ["--max-model-len", "300", "--reasoning-fields", "both", "--strict-api"]
    options += ["--trace", str(tmp_path / "trace")]
    with serving(tmp_path, *options) as (_, http):
        (card,) = http.get("/v1/models").json()["data"]
        assert card["max_model_len"] == 300
        message = http.post("/v1/chat/completions", json=QUESTION).json()["choices"][0]["message"]
        assert message["reasoning"] == message["reasoning_content"]
        (trace,) = (tmp_path / "trace").glob("*.log")
        assert trace.stat().st_size > 200
        long = [{"role": "user", "content": "word " * 300}]
        refused = http.post("/v1/chat/completions", json={"messages": long}).json()
        assert "maximum context length is 300 tokens" in refused["error"]["message"]
        forced = {**QUESTION, "tools": [ENDLESS], "tool_choice": "required"}
        refused = http.post("/v1/chat/completions", json=forced).json()
        assert refused["error"]["message"] == "Thinking mode does not support this tool_choice"
