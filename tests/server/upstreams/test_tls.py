"""An engine behind TLS: reached with the authority that signed it, and not without."""

from __future__ import annotations

import json
import shutil
import ssl
import subprocess
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path

import pytest
from aiohttp import web
from tokenizers import Tokenizer

from baleen.server.errors import UpstreamError
from baleen.server.upstreams.http_client import EngineClient
from baleen.server.upstreams.vllm import VllmUpstream

from ..conftest import Serve

pytestmark = pytest.mark.skipif(
    shutil.which("openssl") is None, reason="no openssl: python tests/peers.py"
)
SAID = "Thought.</think>" + "words and more of them, " * 200


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A self-signed certificate of 127.0.0.1, with its key in the same file."""
    path = tmp_path_factory.mktemp("tls") / "engine.pem"
    command = "openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -days 2"
    subject = ["-subj", "/CN=engine", "-addext", "subjectAltName=IP:127.0.0.1"]
    files = ["-keyout", str(path), "-out", str(path.with_suffix(".crt"))]
    subprocess.run([*command.split(), *subject, *files], check=True, capture_output=True)
    path.write_text(path.read_text() + path.with_suffix(".crt").read_text())
    return path


Engine = Callable[..., Awaitable[int]]


@pytest.fixture
async def engine(tokenizer: Tokenizer) -> AsyncIterator[Engine]:
    """Something that streams as vLLM does; gives its port."""
    runners: list[web.ServerRunner] = []
    ids = [*tokenizer.encode(SAID).ids, 1]

    async def handle(request: web.BaseRequest) -> web.StreamResponse:
        if request.method == "GET":
            return web.json_response({"data": [{"id": "v4", "max_model_len": 100_000}]})
        await request.read()
        response = web.StreamResponse()
        await response.prepare(request)
        for place, number in enumerate(ids, 1):
            finish = "stop" if place == len(ids) else None
            choice = {"index": 0, "token_ids": [number], "finish_reason": finish}
            await response.write(b"data: %b\n\n" % json.dumps({"choices": [choice]}).encode())
        await response.write(b"data: [DONE]\n\n")
        return response

    async def start(certificate: Path | None) -> int:
        context = None
        if certificate is not None:
            context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
            context.load_cert_chain(certificate)
        runner = web.ServerRunner(web.Server(handle))
        await runner.setup()
        runners.append(runner)
        await web.TCPSite(runner, "127.0.0.1", 0, ssl_context=context).start()
        return int(runner.addresses[0][1])

    yield start
    for runner in runners:
        await runner.cleanup()


async def test_answers_come_through_tls(
    serve: Serve, engine: Engine, certificate: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SSL_CERT_FILE", str(certificate))
    port = await engine(certificate)
    client = EngineClient(f"https://127.0.0.1:{port}/v1")
    served = await serve(VllmUpstream(client))
    for _ in range(3):
        choice = (await served.chat(max_tokens=50_000))["choices"][0]
        assert (
            choice["message"]["reasoning_content"] + "</think>" + (choice["message"]["content"])
            == SAID
        )
    assert len(client._idle) == 1, "one connection has served all"


async def test_an_unknown_authority_is_not_trusted(
    engine: Engine, certificate: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("SSL_CERT_FILE", raising=False)
    client = EngineClient(f"https://127.0.0.1:{await engine(certificate)}")
    with pytest.raises(UpstreamError, match=r"self-signed certificate.*SSL_CERT_FILE"):
        await client.get("/v1/models")


async def test_a_certificate_of_another_name_is_not_trusted(
    engine: Engine, certificate: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SSL_CERT_FILE", str(certificate))
    client = EngineClient(f"https://localhost:{await engine(certificate)}")
    with pytest.raises(UpstreamError, match="certificate is not valid for 'localhost'"):
        await client.get("/v1/models")


async def test_an_engine_that_speaks_no_tls_is_said_to(engine: Engine) -> None:
    client = EngineClient(f"https://127.0.0.1:{await engine(None)}")
    with pytest.raises(UpstreamError, match="does it speak TLS"):
        await client.get("/v1/models")
