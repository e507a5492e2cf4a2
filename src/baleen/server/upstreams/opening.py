"""Which engine is at an address."""

from __future__ import annotations

from typing import Any, Final

from baleen.errors import ConfigError
from baleen.server.base import Upstream
from baleen.server.errors import UpstreamError
from baleen.server.upstreams.http_client import EngineClient
from baleen.server.upstreams.llama import LlamaUpstream
from baleen.server.upstreams.sglang import SglangUpstream
from baleen.server.upstreams.vllm import VllmUpstream

KINDS: Final = ("auto", "vllm", "sglang", "llama")


async def open_upstream(
    client: EngineClient,
    tokenizer: Any,
    *,
    kind: str = "auto",
    revision: str = "0731",
    model: str | None = None,
) -> Upstream:
    """The upstream of a kind; `auto` asks the engine what it is.

    Raises:
        UpstreamError: it cannot be reached, or is none of the kinds.
        ConfigError: there is no such kind.
    """
    if kind == "auto":
        kind = await _kind_of(client)
    if kind == "llama":
        return LlamaUpstream(client, tokenizer, revision)
    if kind == "sglang":
        return SglangUpstream(client, revision)
    if kind == "vllm":
        return VllmUpstream(client, revision, model)
    raise ConfigError(f"there is no kind of upstream {kind!r}", remedy=f"use {', '.join(KINDS)}")


async def _kind_of(client: EngineClient) -> str:
    props = await client.get("/props")
    if isinstance(props, dict) and "default_generation_settings" in props:
        return "llama"
    if isinstance(await client.get("/get_server_info"), dict):
        return "sglang"
    if isinstance(await client.get("/version"), dict):
        return "vllm"
    raise UpstreamError(
        f"{client.base_url} answers neither like llama-server, SGLang nor vLLM",
        remedy="say which it is with --upstream-kind",
    )
