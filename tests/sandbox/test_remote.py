"""An edge on another machine: token, frames, JSON, and what its token gives no right to."""

from __future__ import annotations

import asyncio
import base64
import json
import os
import signal
import subprocess
import sys
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from baleen.sandbox import EdgeError, Sandbox, UnsupportedError
from baleen.sandbox.home import Home
from baleen.sandbox.openapi import REQUESTS
from baleen.sandbox.server import _HANDLERS

from .conftest import kill_edge, stop_edge

ENTRY = "from baleen.cli.sandbox import sandbox; sandbox()"
TOKEN = "a token for the tests"


class Served:
    """An edge served over TCP by the command that users run."""

    def __init__(self, home: Path, port: int = 0) -> None:
        self.home = home
        self.process = subprocess.Popen(
            [sys.executable, "-c", ENTRY, "serve", "--port", str(port)],
            stdout=subprocess.PIPE,
            text=True,
            env={
                **os.environ,
                "BALEEN_HOME": str(home),
                "BALEEN_SANDBOX_TOKEN": TOKEN,
                "PYTHONPATH": os.pathsep.join(p for p in sys.path if p),
            },
        )
        assert self.process.stdout is not None
        self.url = self.process.stdout.readline().strip().removeprefix("export BALEEN_SANDBOX_URL=")

    def stop(self) -> None:
        self.process.send_signal(signal.SIGTERM)
        assert self.process.wait(20) == 0
        assert self.process.stdout is not None
        self.process.stdout.close()


@pytest.fixture
def served(own_edge: None, host: Home, monkeypatch: pytest.MonkeyPatch) -> Iterator[Served]:
    edge = Served(host.root)
    monkeypatch.setenv("BALEEN_SANDBOX_URL", edge.url)
    monkeypatch.setenv("BALEEN_SANDBOX_TOKEN", TOKEN)
    yield edge
    monkeypatch.delenv("BALEEN_SANDBOX_URL")
    if edge.process.poll() is None:
        edge.stop()
    stop_edge(host.root)


def ask(served: Served, path: str, data: Any = None, token: str = TOKEN) -> tuple[int, Any]:
    request = urllib.request.Request(
        served.url + path,
        data=None if data is None else json.dumps(data).encode(),
        headers={"Authorization": f"Bearer {token}"},
    )
    try:
        with urllib.request.urlopen(request, timeout=20) as answer:
            return answer.status, json.load(answer)
    except urllib.error.HTTPError as error:
        with error:
            return error.code, json.load(error)


async def test_the_sdk_works_the_same_with_an_edge_over_tcp(
    served: Served, host: Home, tmp_path: Path
) -> None:
    data = os.urandom(9_000_000)
    (tmp_path / "file").write_bytes(data)
    async with await Sandbox.create(labels={"far": "1"}) as box:
        assert (await box.run(["echo", "hi"])).text == "hi\n"
        await box.files.upload(tmp_path / "file", "/tmp/file")
        await box.files.download("/tmp/file", tmp_path / "back")
        assert (tmp_path / "back").read_bytes() == data
        streamed = [o.data async for o in box.stream(["sh", "-c", "echo 1; sleep 0.2; echo 2"])]
        assert b"".join(streamed) == b"1\n2\n"
        assert [row["box"] for row in await Sandbox.list({"far": "1"})] == [box.id]
    assert not (tmp_path / "edge.sock").exists()


async def test_a_wrong_token_is_refused_before_anything_is_asked(
    served: Served, monkeypatch: pytest.MonkeyPatch
) -> None:
    for wrong in ("", "a token for the test", TOKEN + "x"):
        monkeypatch.setenv("BALEEN_SANDBOX_TOKEN", wrong)
        with pytest.raises(EdgeError, match="401") as caught:
            await Sandbox.create()
        assert "BALEEN_SANDBOX_TOKEN" in str(caught.value.remedy)
        assert ask(served, "/v1/list", {}, token=wrong)[0] == 401
    assert ask(served, "/v1/list", {}) == (200, {"ok": []})


async def test_the_token_gives_no_right_to_the_hosts_files(
    served: Served, host: Home, tmp_path: Path
) -> None:
    for options in (
        {"mounts": [("/etc", "/x")]},
        {"trajectory": tmp_path / "log"},
        {"image": str(tmp_path)},
        {"backend": "function"},
    ):
        with pytest.raises(UnsupportedError, match="local edge"):
            await Sandbox.create(**options)
    spec = {"mounts": [{"source": "/etc", "target": "/x", "mode": "rw"}]}
    status, answer = ask(served, "/v1/create", {"spec": spec})
    assert (status, answer["error"]["code"]) == (409, "sandbox-unsupported")
    assert await Sandbox.list() == []
    async with await Sandbox.create() as box:
        with pytest.raises(UnsupportedError, match="port"):
            await box.port(80)


def test_plain_http_creates_runs_and_closes(served: Served) -> None:
    status, made = ask(served, "/v1/create", {"spec": {"memory_mb": 64, "job": "j"}})
    assert status == 200
    box = made["ok"]["box"]
    job = {"argv": ["cat"], "stdin": {"base64": "d2hhbGU="}}
    _, ran = ask(served, "/v1/run", {"box": box, "job": job, "key": "k"})
    assert ran["ok"]["stdout"] == {"base64": "d2hhbGU="}
    assert ran["ok"]["exit_code"] == 0
    assert ask(served, "/v1/run", {"box": box, "job": job, "key": "k"})[1]["ok"]["replayed"]
    status, other = ask(served, "/v1/run", {"box": box, "job": {"argv": ["ls"]}, "key": "k"})
    assert (status, other["error"]["code"]) == (409, "sandbox-divergence")
    status, made = ask(served, "/v1/snapshot", {"box": box})
    assert (status, len(made["ok"])) == (200, 64)
    _, read = ask(served, "/v1/file", {"box": box, "op": "read", "path": "/etc/hostname"})
    assert "error" in read
    assert ask(served, "/v1/reap", {"job": "j"}) == (200, {"ok": [box]})
    assert ask(served, "/v1/run", {"box": box, "job": job})[1]["error"]["cause"] == "evicted"


def test_a_command_that_cannot_be_right_is_refused_and_harms_no_box(served: Served) -> None:
    box = ask(served, "/v1/create", {})[1]["ok"]["box"]
    for job in ({"argv": ["id"], "user": 1.5}, {"argv": ["id", 5]}, {"argv": ["id"], "tty": True}):
        assert ask(served, "/v1/run", {"box": box, "job": job})[0] == 400, job
    data = {"base64": base64.b64encode(bytes(33 << 20)).decode()}
    job = {"argv": ["wc", "-c"], "stdin": data}
    assert ask(served, "/v1/run", {"box": box, "job": job})[0] == 400
    write = {"box": box, "op": "write", "path": "/tmp/x", "arguments": {"data": data}}
    assert ask(served, "/v1/file", write)[0] == 400
    job = {"argv": ["echo", "alive"]}
    ran = ask(served, "/v1/run", {"box": box, "job": job})[1]["ok"]
    assert base64.b64decode(ran["stdout"]["base64"]) == b"alive\n"
    assert ask(served, "/v1/close", {"box": box})[0] == 200


def test_what_is_not_asked_right_is_answered_and_nothing_breaks(served: Served) -> None:
    assert ask(served, "/v1/nothing", {})[0] == 404
    assert ask(served, "/v1/run", {"box": "x"})[0] == 400
    assert ask(served, "/v1/stop", {})[0] == 404
    assert ask(served, "/v1/attach", {"box": "../../etc"})[0] in (400, 409)
    assert ask(served, "/health", token="none")[1] == {"status": "ok"}


def test_the_document_names_every_request(served: Served) -> None:
    status, document = ask(served, "/openapi.json", token="none")
    assert status == 200
    assert document["openapi"].startswith("3.1")
    assert {f"/v1/{name}" for name in REQUESTS} < set(document["paths"])
    assert set(REQUESTS) - {"run"} <= set(_HANDLERS)
    run = document["paths"]["/v1/run"]["post"]["requestBody"]["content"]["application/json"]
    assert run["schema"]["required"] == ["box", "job"]


async def test_a_client_survives_the_death_of_a_remote_edge(served: Served, host: Home) -> None:
    port = int(served.url.rpartition(":")[2])
    box = await Sandbox.create()
    await box.run(["sh", "-c", "echo kept > /tmp/kept"], key="1")
    kill_edge(host.root)
    served.process.communicate()
    again = await asyncio.to_thread(Served, host.root, port)
    try:
        assert (await box.run(["sh", "-c", "echo kept > /tmp/kept"], key="1")).replayed
        assert (await box.run(["cat", "/tmp/kept"])).text == "kept\n"
        await box.close()
    finally:
        await asyncio.to_thread(again.stop)


async def test_no_edge_at_the_url_is_a_typed_error(monkeypatch: pytest.MonkeyPatch) -> None:
    for url, match in (("http://127.0.0.1:1", "no edge answers"), ("tcp:nonsense", "not http")):
        monkeypatch.setenv("BALEEN_SANDBOX_URL", url)
        with pytest.raises(EdgeError, match=match):
            await Sandbox.create()
