"""Harbor's own trials of tasks written here: the oracle earns 1, doing nothing earns 0."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest

os.environ["HARBOR_TELEMETRY"] = "0"

from harbor.job import Job
from harbor.models.job.config import JobConfig
from harbor.models.trial.config import AgentConfig, EnvironmentConfig, TaskConfig

from baleen.sandbox import Sandbox
from baleen.sandbox.adapters.harbor import BaleenEnvironment

IMPORT_PATH = f"{BaleenEnvironment.__module__}:{BaleenEnvironment.__name__}"

TASK = """\
schema_version = "1.3"

[metadata]
author_name = "baleen"

[environment]
build_timeout_sec = 120
cpus = 1
memory_mb = 512
storage_mb = 256
network_mode = "no-network"

[agent]
timeout_sec = 60

[verifier]
timeout_sec = 60
"""

DOCKERFILES = {
    "count": "FROM host\nWORKDIR /srv\nCOPY words.txt .\nRUN echo prepared > ready\n",
    "owner": "FROM host\nRUN mkdir /data && chown user /data\nUSER user\nWORKDIR /data\n",
}
SOLUTIONS = {
    "count": "#!/bin/bash\ncd /srv && test -f ready && wc -w < words.txt > answer.txt\n",
    "owner": "#!/bin/bash\nmkdir -p /data/deep && id -un > /data/deep/who\n",
}
TESTS = {
    "count": "grep -qx 4 /srv/answer.txt",
    "owner": 'test "$(cat /data/deep/who)" = user',
}


def write_task(folder: Path, name: str) -> Path:
    task = folder / name
    for part in ("environment", "solution", "tests"):
        (task / part).mkdir(parents=True)
    (task / "instruction.md").write_text(f"Solve {name}.\n")
    (task / "task.toml").write_text(TASK)
    (task / "environment/Dockerfile").write_text(DOCKERFILES[name])
    (task / "environment/words.txt").write_text("one two three four\n")
    (task / "solution/solve.sh").write_text(SOLUTIONS[name])
    (task / "tests/test.sh").write_text(
        f"#!/bin/bash\nif {TESTS[name]}; then echo 1; else echo 0; fi > /logs/verifier/reward.txt\n"
    )
    return task


async def rewards(folder: Path, agent: str) -> dict[str, float]:
    """Runs a job of all tasks and returns their rewards."""
    config = JobConfig(
        job_name=agent,
        jobs_dir=folder / "jobs",
        quiet=True,
        n_concurrent_trials=2,
        agents=[AgentConfig(name=agent)],
        environment=EnvironmentConfig(import_path=IMPORT_PATH),
        tasks=[TaskConfig(path=folder / "tasks" / name) for name in DOCKERFILES],
    )
    job = await Job.create(config)
    await job.run()
    found = {}
    for path in (folder / "jobs" / agent).glob("*/result.json"):
        result: dict[str, Any] = json.loads(path.read_text())
        assert result["exception_info"] is None, result["exception_info"]
        name = result["task_name"].rpartition("/")[2]
        found[name] = result["verifier_result"]["rewards"]["reward"]
    return found


@pytest.mark.parametrize(("agent", "reward"), [("oracle", 1.0), ("nop", 0.0)])
async def test_the_oracle_earns_one_and_doing_nothing_zero(
    tmp_path: Path, agent: str, reward: float
) -> None:
    for name in DOCKERFILES:
        write_task(tmp_path / "tasks", name)
    assert await rewards(tmp_path, agent) == dict.fromkeys(DOCKERFILES, reward)
    assert await Sandbox.list() == []
