"""The reference client of MCP talks to ``baleen mcp``."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator
from typing import Any

import pytest
from mcp import Client, StdioServerParameters

SERVER = StdioServerParameters(
    command=os.environ["BALEEN_TEST_PYTHON"],
    args=["-m", "baleen.cli.main", "mcp"],
    env={key: os.environ[key] for key in ("PYTHONPATH", "BALEEN_HOME", "HOME")},
)


async def call(client: Client, name: str, **arguments: Any) -> tuple[str, bool]:
    result = await client.call_tool(name, arguments)
    return "".join(part.text for part in result.content), bool(result.is_error)


@pytest.mark.parametrize("mode", ["auto", "legacy"])
async def test_tools_are_listed_with_their_schemas(mode: Any) -> None:
    async with Client(SERVER, mode=mode) as client:
        tools = {tool.name: tool for tool in (await client.list_tools()).tools}
        assert set(tools) == {"bash", "read_file", "write_file", "edit"}
        assert tools["bash"].input_schema["required"] == ["command"]


async def test_files_are_written_read_edited_and_run() -> None:
    async with Client(SERVER) as client:
        assert await call(client, "write_file", path="/w/a.py", content="print('one')\n") == (
            "wrote 13 bytes",
            False,
        )
        assert await call(client, "edit", path="/w/a.py", old="one", new="zwei ✓") == (
            "replaced 1",
            False,
        )
        assert await call(client, "bash", command="python3 a.py; echo e >&2; exit 3", cwd="/w") == (
            "zwei ✓\ne\n[exit code 3]",
            False,
        )
        lines = "".join(f"{n}\n" for n in range(10))
        await call(client, "write_file", path="/w/n", content=lines)
        assert await call(client, "read_file", path="/w/n", offset=3, limit=2) == ("2\n3\n", False)


@pytest.mark.parametrize(
    ("name", "arguments", "words"),
    [
        ("read_file", {"path": "/absent"}, "absent"),
        ("read_file", {"path": "relative"}, "not an absolute path"),
        ("edit", {"path": "/etc/shells", "old": "nothing like it", "new": "x"}, "is not in"),
        ("edit", {"path": "/etc/shells", "old": "/bin", "new": "x"}, "2 times"),
        ("bash", {}, "'command' is missing"),
        ("bash", {"command": 3}, "must be a string"),
        ("bash", {"command": "x", "shell": "y"}, "unknown argument 'shell'"),
        ("bash", {"command": "x", "timeout_s": -1}, "positive"),
    ],
)
async def test_a_models_mistakes_are_told_to_it(
    name: str, arguments: dict[str, Any], words: str
) -> None:
    async with Client(SERVER) as client:
        text, is_error = await call(client, name, **arguments)
        assert is_error
        assert words in text
        assert (await call(client, "bash", command="echo alive"))[0].startswith("alive")


async def test_calls_run_side_by_side_and_time_is_kept() -> None:
    async with Client(SERVER) as client:
        await call(client, "bash", command="true")
        began = asyncio.get_running_loop().time()
        texts = await asyncio.gather(
            *(call(client, "bash", command=f"sleep 0.5; echo {n}") for n in range(4))
        )
        assert [text.split()[0] for text, _ in texts] == ["0", "1", "2", "3"]
        assert asyncio.get_running_loop().time() - began < 1.9
        text, is_error = await call(client, "bash", command="echo a; sleep 60", timeout_s=0.3)
        assert (text, is_error) == ("a\n[killed: out of time]\n[exit code 124]", False)


async def test_floods_are_cut_and_said_to_be() -> None:
    async with Client(SERVER) as client:
        text, _ = await call(client, "bash", command="yes | head -c 5000000")
        assert len(text) < 250_000
        assert "was dropped" in text
        await call(client, "bash", command="yes | head -c 5000000 > /big")
        text, is_error = await call(client, "read_file", path="/big")
        assert is_error
        assert "use offset and limit" in text


async def test_an_infrastructure_failure_is_an_error_of_the_protocol() -> None:
    broken = SERVER.model_copy(update={"args": [*SERVER.args, "--image", "absent:1"]})
    async with Client(broken) as client:
        with pytest.raises(Exception, match="no image 'absent:1' here"):
            await client.call_tool("bash", {"command": "echo never"})


@pytest.fixture(autouse=True)
async def no_box_stays() -> AsyncIterator[None]:
    yield
    from baleen.sandbox import Sandbox

    for _ in range(200):
        if not await Sandbox.list():
            return
        await asyncio.sleep(0.02)
    raise AssertionError("a box was left")
