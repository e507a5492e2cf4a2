"""inspect_ai's own conformance suite, and an evaluation, in boxes."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from inspect_ai import Task, eval
from inspect_ai.dataset import Sample
from inspect_ai.model import ModelOutput, get_model
from inspect_ai.scorer import Score, Target, accuracy, scorer
from inspect_ai.solver import TaskState, generate, use_tools
from inspect_ai.tool import bash
from inspect_ai.util import SandboxEnvironment, SandboxEnvironmentSpec, sandbox
from inspect_ai.util._sandbox.environment import SandboxUnavailableError
from inspect_ai.util._sandbox.self_check import *  # noqa: F403

from baleen.sandbox import Sandbox
from baleen.sandbox.adapters.inspect_ai import BaleenConfig, BaleenSandboxEnvironment


@pytest.fixture
async def sandbox_env() -> AsyncIterator[SandboxEnvironment]:
    """A box whose commands and files are an ordinary user's: root would ignore file modes."""
    config = BaleenConfig(user="user", memory_mb=1024)
    made = await BaleenSandboxEnvironment.sample_init("check", config, {})
    yield made["default"]
    await BaleenSandboxEnvironment.sample_cleanup("check", config, made, False)


async def test_a_dead_box_is_unavailable_and_no_output(sandbox_env: SandboxEnvironment) -> None:
    box = sandbox_env.as_type(BaleenSandboxEnvironment)._box
    await (await Sandbox.attach(box.id)).close()
    with pytest.raises(SandboxUnavailableError):
        await sandbox_env.exec(["true"])


async def test_the_connection_names_the_box(sandbox_env: SandboxEnvironment) -> None:
    connection = await sandbox_env.connection()
    assert connection.command == f"baleen sandbox shell {connection.container}"


@scorer(metrics=[accuracy()])
def file_holds(path: str):
    async def score(state: TaskState, target: Target) -> Score:
        text = await sandbox().read_file(path)
        return Score(value="C" if text == target.text else "I")

    return score


def test_an_evaluation_runs_with_a_dockerfile(tmp_path: Path) -> None:
    (tmp_path / "Dockerfile").write_text("FROM host\nWORKDIR /srv/task\nRUN echo 20 > number\n")
    call = ModelOutput.for_tool_call(
        "mockllm/model", "bash", {"cmd": "expr $(cat number) + 22 > answer"}
    )
    model = get_model("mockllm/model", custom_outputs=[call, ModelOutput.from_content("m", "done")])
    task = Task(
        dataset=[Sample(input="add", target="42\n")],
        solver=[use_tools(bash()), generate()],
        scorer=file_holds("answer"),
        sandbox=SandboxEnvironmentSpec("baleen", str(tmp_path / "Dockerfile")),
    )
    (log,) = eval(task, model=model, log_dir=str(tmp_path / "logs"), display="none")
    assert log.status == "success", log.error
    assert log.results is not None
    assert log.results.scores[0].metrics["accuracy"].value == 1.0
