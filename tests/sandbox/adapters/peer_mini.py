"""mini-swe-agent's own agent solves a task in a box."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from minisweagent.agents.default import DefaultAgent
from minisweagent.environments import get_environment
from minisweagent.exceptions import Submitted
from minisweagent.models.test_models import DeterministicModel, make_output

from baleen.errors import UsageError
from baleen.sandbox import BoxGoneError
from baleen.sandbox.adapters.mini_swe_agent import BaleenEnvironment

CLASS = "baleen.sandbox.adapters.mini_swe_agent.BaleenEnvironment"


@pytest.fixture
def environment() -> Iterator[Any]:
    made: Any = get_environment({"environment_class": CLASS, "cwd": "/tmp", "env": {"A": "1"}})
    yield made
    made.cleanup()


def test_commands_run_in_the_box(environment: Any) -> None:
    done = environment.execute({"command": "pwd; echo $A; echo e >&2; exit 3"})
    assert done == {"output": "/tmp\n1\ne\n", "returncode": 3, "exception_info": ""}
    environment.execute({"command": "echo kept > file"})
    assert environment.execute({"command": "cat file"})["output"] == "kept\n"
    assert environment.execute({"command": "pwd"}, cwd="/usr")["output"] == "/usr\n"


def test_a_command_out_of_time_is_killed_and_said_so(environment: Any) -> None:
    done = environment.execute({"command": "echo before; sleep 60"}, timeout=1)
    assert done["output"] == "before\n"
    assert done["returncode"] == -1
    assert "killed after 1 seconds" in done["exception_info"]
    assert environment.execute({"command": "echo alive"})["output"] == "alive\n"


def test_a_submission_ends_the_task(environment: Any) -> None:
    with pytest.raises(Submitted) as caught:
        environment.execute({"command": "echo COMPLETE_TASK_AND_SUBMIT_FINAL_OUTPUT; echo result"})
    assert caught.value.messages[0]["extra"]["submission"] == "result\n"


def test_a_failed_box_raises_and_is_no_output(environment: Any) -> None:
    environment._box._box._client.release(environment._box.id)
    import baleen.sandbox.sync as boxes

    boxes.Sandbox.attach(environment._box.id).close()
    with pytest.raises(BoxGoneError):
        environment.execute({"command": "true"})


def test_unknown_settings_are_named() -> None:
    with pytest.raises(UsageError, match="memry_mb"):
        BaleenEnvironment(memry_mb=1)


def test_the_default_agent_works_in_it(environment: Any, tmp_path: Path) -> None:
    commands = [
        "echo 'print(6 * 7)' > answer.py",
        "python3 answer.py",
        "echo COMPLETE_TASK_AND_SUBMIT_FINAL_OUTPUT; python3 answer.py",
    ]
    outputs = [make_output(f"step {i}", [{"command": c}]) for i, c in enumerate(commands)]
    agent = DefaultAgent(
        DeterministicModel(outputs=outputs),
        environment,
        system_template="You work on {{system}}.",
        instance_template="{{task}}",
        output_path=tmp_path / "run.traj.json",
    )
    end = agent.run("compute")
    assert end["exit_status"] == "Submitted"
    assert end["submission"] == "42\n"
    saved = json.loads((tmp_path / "run.traj.json").read_text())
    assert saved["info"]["config"]["environment_type"] == CLASS
