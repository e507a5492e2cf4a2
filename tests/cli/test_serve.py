"""`baleen serve` as a command: it answers, tells where, and ends well."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import httpx

from baleen.cli.main import main

QUESTION = {"messages": [{"role": "user", "content": "What is 12 * 12?"}], "max_tokens": 8}


def test_nano_is_served_out_of_the_box_and_ends_on_sigterm(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "baleen.cli.main", "serve", "nano", "--port", "0"]
    env = {**os.environ, "BALEEN_HOME": str(tmp_path)}
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env=env) as process:
        try:
            assert process.stderr is not None
            line = process.stderr.readline().strip()
            assert line.startswith("baleen: serving nano at http://127.0.0.1:")
            url = line.rpartition(" ")[2]
            with httpx.Client(base_url=url, timeout=60, trust_env=False) as http:
                answer = http.post("/v1/chat/completions", json=QUESTION).json()
                assert answer["usage"]["completion_tokens"] == 8
                again = http.post("/v1/chat/completions", json=QUESTION).json()
                assert again["choices"][0]["message"] == answer["choices"][0]["message"]
            process.send_signal(signal.SIGTERM)
            assert process.wait(30) == 0
        finally:
            process.kill()
    assert (tmp_path / "serve/nano/turns.db").is_file()
    assert not list((tmp_path / "serve/nano/tokens").iterdir())


def test_an_engine_that_is_not_there_is_named(capsys: object) -> None:
    assert main(["serve", "nano", "--no-state", "--upstream", "http://127.0.0.1:9"]) == 1
