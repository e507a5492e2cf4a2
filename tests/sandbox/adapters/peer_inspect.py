"""inspect_ai's own conformance suite, and an evaluation, in boxes."""

from __future__ import annotations

import asyncio
import shutil
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from inspect_ai import Task, eval
from inspect_ai.dataset import Sample
from inspect_ai.scorer import Score, Target, accuracy, scorer
from inspect_ai.solver import Generate, TaskState, solver
from inspect_ai.tool import bash
from inspect_ai.util import SandboxEnvironment, SandboxEnvironmentSpec, sandbox
from inspect_ai.util._sandbox.environment import SandboxUnavailableError
from inspect_ai.util._sandbox.self_check import *  # noqa: F403

from baleen.sandbox import Sandbox
from baleen.sandbox.adapters.inspect_ai import BaleenConfig, BaleenSandboxEnvironment
from baleen.sandbox.home import Home
from baleen.sandbox.images.dockerfile.builder import build

ETC = ("pam.d", "security", "skel", "adduser.conf", "login.defs", "deluser.conf")


@pytest.fixture(scope="module")
def image(tmp_path_factory: pytest.TempPathFactory) -> str:
    """The host's programs with the settings that `adduser` needs, which `host` leaves out."""
    context = tmp_path_factory.mktemp("context")
    for name in ETC:
        source = Path("/etc", name)
        if source.is_dir():
            shutil.copytree(source, context / name, symlinks=True)
        elif source.exists():
            shutil.copy(source, context / name)
    (context / "Dockerfile").write_text(
        "FROM host\nCOPY . /etc/\n"
        "RUN rm /etc/Dockerfile && sed 's/:.*/:*:19000:0:99999:7:::/' /etc/passwd > /etc/shadow\n"
    )
    home = Home.default()
    home.prepare()
    return f"sha256:{asyncio.run(build(home, context, 'inspect-check'))}"


@pytest.fixture
async def sandbox_env(image: str) -> AsyncIterator[SandboxEnvironment]:
    """A box whose commands and files are an ordinary user's: root would ignore file modes."""
    config = BaleenConfig(image=image, user="user", memory_mb=1024)
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


@solver
def one_command(line: str):
    async def solve(state: TaskState, generate: Generate) -> TaskState:
        assert await bash()(line) == "/srv/task\n"
        return state

    return solve


def test_an_evaluation_runs_with_a_dockerfile(tmp_path: Path) -> None:
    (tmp_path / "Dockerfile").write_text("FROM host\nWORKDIR /srv/task\nRUN echo 20 > number\n")
    task = Task(
        dataset=[Sample(input="add", target="42\n")],
        solver=one_command("expr $(cat number) + 22 > answer; pwd"),
        scorer=file_holds("answer"),
        sandbox=SandboxEnvironmentSpec("baleen", str(tmp_path / "Dockerfile")),
    )
    (log,) = eval(task, model="mockllm/model", log_dir=str(tmp_path / "logs"), display="none")
    assert log.status == "success", log.error
    assert log.results is not None
    assert log.results.scores[0].metrics["accuracy"].value == 1.0
