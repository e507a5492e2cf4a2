"""Coding agents and client libraries as people install them, each completing a turn with a call.

`python tests/peers.py` installs them; where they are missing, their tests are skipped.
The script plays the model: it calls the client's shell tool
with `echo from-the-tool-$((6*7))`, and answers once it sees what that printed.
"""

from __future__ import annotations

import asyncio
import json
import os
import re
from pathlib import Path
from typing import Any

import pytest

from ...peers import CLIENTS, FOLDER
from ..conftest import Serve, Served

CODEX = CLIENTS / "node_modules/.bin/codex"
OPENCODE = CLIENTS / "node_modules/opencode-linux-x64/bin/opencode"
CLAUDE = CLIENTS / "node_modules/.bin/claude"
PYTHON = FOLDER / "litellm/bin/python"
PRINTED = "from-the-tool-42"
SHELLS = ("exec_command", "shell_command", "shell", "local_shell", "bash", "Bash", "container.exec")
QUIET = {"NO_COLOR": "1", "LITELLM_LOCAL_MODEL_COST_MAP": "True", "MSWEA_SILENT_STARTUP": "1"}
needs_python = pytest.mark.skipif(not PYTHON.exists(), reason="no litellm: python tests/peers.py")


def playing(served: Served) -> Any:
    """Calls the shell tool that the prompt offers, then answers."""
    vocabulary = served.gateway.vocabulary

    def say(asked: Any) -> str:
        prompt = "".join(text for text, _ in vocabulary.segments_of(asked.ids))
        if PRINTED in prompt.rpartition("<｜User｜>")[2]:
            return "Seen.</think>All done: the tool said 42."
        tools = dict(re.findall(r'^(\{"name": "([^"]+)".*\})$', prompt, re.MULTILINE))
        names = {name: json.loads(line) for line, name in tools.items()}
        name = next((shell for shell in SHELLS if shell in names), None)
        if name is None:
            return "A side request.</think>Title"
        properties = names[name]["parameters"]["properties"]
        key = "cmd" if "cmd" in properties else "command"
        command = "echo from-the-tool-$((6*7))"
        is_list = properties[key].get("type") == "array"
        value = json.dumps(["bash", "-lc", command]) if is_list else command
        parameters = [(key, "false" if is_list else "true", value)]
        if "description" in names[name]["parameters"].get("required", ()):
            parameters.append(("description", "true", "Say a number"))
        written = "\n".join(
            f'<｜DSML｜parameter name="{k}" string="{s}">{v}</｜DSML｜parameter>'
            for k, s, v in parameters
        )
        return (
            "I call it.</think>Calling.\n\n<｜DSML｜tool_calls>\n"
            f'<｜DSML｜invoke name="{name}">\n{written}\n</｜DSML｜invoke>\n</｜DSML｜tool_calls>'
        )

    return say


async def run(*command: object, folder: Path, **env: str) -> str:
    """Output of a client that ends well; its home is the given folder."""
    process = await asyncio.create_subprocess_exec(
        *map(str, command),
        cwd=folder,
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
        env={**os.environ, "HOME": str(folder), **QUIET, **env},
    )
    try:
        out, _ = await asyncio.wait_for(process.communicate(), 150)
    except TimeoutError:
        process.kill()
        out, _ = await process.communicate()
        raise AssertionError(f"the client hung: {out.decode()[-3000:]}") from None
    text = out.decode(errors="replace")
    assert process.returncode == 0, text[-3000:]
    return text


@pytest.fixture
async def served(serve: Serve) -> Served:
    # The bundled tokenizer is small, so agents' prompts are several times longer than usual.
    found = await serve("", upstream_options={"tokens_per_piece": 4})
    found.upstream.script = playing(found)
    return found


def assert_prefix_was_reused(served: Served) -> None:
    """The second turn's prompt began with all that the first had computed."""
    reused = served.gateway.telemetry.reused.plain
    reusable = served.gateway.telemetry.reusable.plain
    assert reused == reusable > 0


@pytest.mark.skipif(not CODEX.exists(), reason="no codex: python tests/peers.py")
@pytest.mark.slow
async def test_codex_finishes_a_turn_with_a_call(served: Served, tmp_path: Path) -> None:
    provider = (
        f'{{name="x",base_url="{served.url}/v1",wire_api="responses",env_key="XKEY",'
        "stream_max_retries=0}"
    )
    text = await run(
        CODEX, "exec", "--skip-git-repo-check", "--dangerously-bypass-approvals-and-sandbox",
        "-c", "model_provider=x", "-c", f"model_providers.x={provider}", "-m", "v4",
        "Say a number with the shell.", folder=tmp_path, XKEY="a", CODEX_HOME=str(tmp_path),
    )  # fmt: skip
    assert "the tool said 42" in text
    assert_prefix_was_reused(served)


@pytest.mark.skipif(not OPENCODE.exists(), reason="no opencode: python tests/peers.py")
@pytest.mark.slow
async def test_opencode_finishes_a_turn_with_a_call(served: Served, tmp_path: Path) -> None:
    provider = {
        "npm": "@ai-sdk/openai-compatible",
        "options": {"baseURL": f"{served.url}/v1", "apiKey": "a"},
        "models": {"v4": {"name": "v4"}},
    }
    config = {"provider": {"x": provider}, "model": "x/v4"}
    path = tmp_path / "opencode.json"
    path.write_text(json.dumps(config))
    text = await run(
        OPENCODE, "run", "-m", "x/v4", "Say a number with the shell.", folder=tmp_path,
        OPENCODE_CONFIG=str(path), XDG_CONFIG_HOME=str(tmp_path / "config"),
    )  # fmt: skip
    assert "the tool said 42" in text
    assert_prefix_was_reused(served)


@pytest.mark.skipif(not CLAUDE.exists(), reason="no claude: python tests/peers.py")
@pytest.mark.slow
async def test_claude_code_finishes_a_turn_with_a_call(served: Served, tmp_path: Path) -> None:
    text = await run(
        CLAUDE, "-p", "Say a number with the shell.", "--allowedTools", "Bash", folder=tmp_path,
        ANTHROPIC_BASE_URL=served.url, ANTHROPIC_API_KEY="a", DISABLE_AUTOUPDATER="1",
        CLAUDE_CODE_DISABLE_NONESSENTIAL_TRAFFIC="1",
    )  # fmt: skip
    assert "the tool said 42" in text
    assert_prefix_was_reused(served)


LITELLM = """
import json, sys, litellm
tool = {"type": "function", "function": {"name": "bash", "description": "Run a command.",
    "parameters": {"type": "object", "properties": {"command": {"type": "string"}},
                   "required": ["command"]}}}
messages = [{"role": "user", "content": "Say a number with the shell."}]
common = dict(model="openai/v4", api_base=sys.argv[1], api_key="a", tools=[tool])
chunks = list(litellm.completion(messages=messages, stream=True, **common))
first = litellm.stream_chunk_builder(chunks, messages=messages).choices[0].message
call = first.tool_calls[0]
assert json.loads(call.function.arguments) == {"command": "echo from-the-tool-$((6*7))"}
messages += [{"role": "assistant", "content": first.content, "tool_calls": [
    {"id": call.id, "type": "function", "function":
     {"name": call.function.name, "arguments": call.function.arguments}}]},
    {"role": "tool", "tool_call_id": call.id, "content": "from-the-tool-42"}]
print(litellm.completion(messages=messages, **common).choices[0].message.content)
"""


@needs_python
@pytest.mark.slow
async def test_litellm_finishes_a_turn_and_its_reasoning_is_restored(
    served: Served, tmp_path: Path
) -> None:
    text = await run(PYTHON, "-c", LITELLM, f"{served.url}/v1", folder=tmp_path)
    assert "the tool said 42" in text
    assert_prefix_was_reused(served)
    restored = served.gateway.telemetry.restored.plain
    assert restored == 1


MINI = """
import sys
from minisweagent.agents.default import DefaultAgent
from minisweagent.environments.local import LocalEnvironment
from minisweagent.models.litellm_model import LitellmModel
model = LitellmModel(model_name="openai/v4", cost_tracking="ignore_errors",
                     model_kwargs={"api_base": sys.argv[1], "api_key": "a"})
agent = DefaultAgent(model, LocalEnvironment(), system_template="You use the bash tool.",
                     instance_template="{{task}}", step_limit=6, cost_limit=0)
print(agent.run("Say a number with the shell."))
"""


@needs_python
@pytest.mark.slow
async def test_mini_swe_agent_finishes_a_task(served: Served, tmp_path: Path) -> None:
    play = playing(served)
    submit = "echo COMPLETE_TASK_AND_SUBMIT_FINAL_OUTPUT; echo 42"

    def say(asked: Any) -> str:
        said = play(asked)
        if "</think>All done" not in said:
            return said
        return (
            'Done.</think>\n\n<｜DSML｜tool_calls>\n<｜DSML｜invoke name="bash">\n'
            f'<｜DSML｜parameter name="command" string="true">{submit}</｜DSML｜parameter>\n'
            "</｜DSML｜invoke>\n</｜DSML｜tool_calls>"
        )

    served.upstream.script = say
    text = await run(PYTHON, "-c", MINI, f"{served.url}/v1", folder=tmp_path)
    assert "Submitted" in text
    assert_prefix_was_reused(served)
