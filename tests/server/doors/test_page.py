"""The page in a real browser."""

from __future__ import annotations

import asyncio
import shutil
from pathlib import Path

import pytest

from baleen.server.upstreams.scripted import Line

from ..conftest import Serve

BROWSER = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("chrome")


async def dom_of(url: str, folder: Path, *more: str) -> str:
    """The page's elements after its scripts have run."""
    assert BROWSER is not None
    command = [
        BROWSER,
        "--headless",
        "--no-sandbox",
        "--disable-gpu",
        "--disable-dev-shm-usage",
        f"--user-data-dir={folder}",
        "--virtual-time-budget=4000",
        "--window-size=1200,800",
        *more,
        "--dump-dom",
        url,
    ]
    process = await asyncio.create_subprocess_exec(
        *command, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.DEVNULL
    )
    out, _ = await asyncio.wait_for(process.communicate(), 90)
    return out.decode()


async def test_the_page_is_one_file_that_loads_nothing_from_elsewhere(serve: Serve) -> None:
    served = await serve("a</think>b")
    response = await served.http.get("/")
    assert response.headers["content-type"].startswith("text/html")
    assert "default-src 'none'" in response.headers["content-security-policy"]
    assert "http://" not in response.text
    assert "https://" not in response.text
    head = await served.http.head("/")
    assert (head.status_code, head.content) == (200, b"")
    assert (await served.http.head("/v1/messages")).status_code == 405


@pytest.mark.skipif(BROWSER is None, reason="there is no chromium")
async def test_the_page_talks_and_shows_numbers(serve: Serve, tmp_path: Path) -> None:
    served = await serve("A greeting.</think>Hello from the model")
    dom = await dom_of(f"{served.url}/?ask=Hi+there", tmp_path)
    for text in ("Hi there", "A greeting.", "Hello from the model", "stop · ", "scripted"):
        assert text in dom, text
    assert "<td>tokens sampled</td>" in dom


@pytest.mark.skipif(BROWSER is None, reason="there is no chromium")
async def test_a_key_is_asked_for_where_one_is_needed(serve: Serve, tmp_path: Path) -> None:
    served = await serve("A greeting.</think>Hello from the model", api_keys=("secret",))
    refused = await dom_of(f"{served.url}/?ask=Hi", tmp_path)
    assert "Authentication Fails" in refused
    assert '<form id="enter">' in refused
    let_in = await dom_of(f"{served.url}/?ask=Hi#key=secret", tmp_path)
    assert '<form id="enter" hidden="">' in let_in
    assert "Hello from the model" in let_in


@pytest.mark.skipif(BROWSER is None, reason="there is no chromium")
async def test_an_answer_that_breaks_off_is_said_to(serve: Serve, tmp_path: Path) -> None:
    served = await serve(lambda _: Line("a b c d e f", breaks_after=3), upstream_retries=0)
    dom = await dom_of(f"{served.url}/?ask=Hi", tmp_path)
    assert "the script broke off" in dom
    assert "<td>refused</td><td>0</td>" in dom
    empty = await dom_of(served.url, tmp_path)
    assert 'data-empty="Ask the model something.' in empty
