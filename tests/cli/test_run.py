"""`baleen run` against a scripted endpoint, with real sandboxes."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from growth import kill_when_grown
from scripted_endpoint import ScriptedEndpoint

from baleen.agent.atif_check import problems
from baleen.cli.main import main

pytestmark = pytest.mark.usefixtures("home")

ANSWER = {"reasoning": "Now I know.", "content": "8443"}


def bash(*commands: str) -> dict[str, Any]:
    calls = [
        {"id": f"call_{i:02d}", "name": "bash", "arguments": json.dumps({"command": command})}
        for i, command in enumerate(commands)
    ]
    return {"reasoning": "Let me see.", "calls": calls}


def edit(**arguments: Any) -> dict[str, Any]:
    return {"calls": [{"id": "call_00", "name": "edit", "arguments": json.dumps(arguments)}]}


@pytest.fixture
def work(tmp_path: Path) -> Path:
    folder = tmp_path / "work"
    folder.mkdir()
    (folder / "edge.conf").write_text("service = staging\nport = 8443\n")
    return folder


@pytest.fixture(autouse=True)
def in_a_folder_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


class Ran:
    """Exit code, data and talk of one call of the command line."""

    def __init__(self, code: int, out: str, err: str) -> None:
        self.code, self.out, self.err = code, out, err

    @property
    def found(self) -> dict[str, Any]:
        value: dict[str, Any] = json.loads(self.out)
        return value


@pytest.fixture
def baleen(capsys: pytest.CaptureFixture[str]) -> Any:
    def call(*arguments: str) -> Ran:
        code = main(list(arguments))
        captured = capsys.readouterr()
        return Ran(code, captured.out, captured.err)

    return call


def test_the_json_object_has_answer_outcome_calls_and_usage(baleen: Any, work: Path) -> None:
    script = [bash("grep -rl staging .", "exit 3"), ANSWER]
    with ScriptedEndpoint(script) as server:
        ran = baleen("run", "--json", "-m", server.url, "--mount", str(work), "Which port?")
    assert ran.code == 0
    found = ran.found
    assert (found["answer"], found["outcome"]) == ("8443", "stop")
    calls = [(call["command"], call["exit_code"], call["output"]) for call in found["calls"]]
    assert calls == [("grep -rl staging .", 0, "./edge.conf"), ("exit 3", 3, "[exit 3]")]
    assert found["usage"]["completion_tokens"] == 14
    assert found["model"] == "scripted"
    run_dir = Path(found["run_dir"])
    assert problems(json.loads((run_dir / "trajectory.json").read_text())) == []
    assert json.loads((run_dir / "summary.json").read_text()) == found
    assert (Path("runs") / "latest").resolve() == run_dir
    names = {path.name for path in run_dir.iterdir()}
    assert {"config.json", "versions.json", "wal", "tokens.json", "sandbox.log"} <= names


def test_only_the_answer_is_data_and_the_rest_is_talk(baleen: Any, work: Path) -> None:
    with ScriptedEndpoint([bash("cat edge.conf"), ANSWER]) as server:
        ran = baleen("run", "-m", server.url, "--mount", str(work), "Which port?")
    assert ran.out == "8443\n"
    for shown in ("Let me see.", "$ cat edge.conf", "port = 8443", "Now I know.", "tokens/s"):
        assert shown in ran.err


def test_files_are_edited_through_the_sandbox(baleen: Any, work: Path) -> None:
    script = [
        edit(command="view", path="edge.conf"),
        edit(command="str_replace", path="edge.conf", old_str="8443", new_str="9000"),
        edit(command="create", path="new/notes.txt", file_text="changed\n"),
        bash("cat edge.conf new/notes.txt"),
        {"content": "done"},
    ]
    with ScriptedEndpoint(script) as server:
        ran = baleen("run", "--json", "-m", server.url, "--mount", f"{work}:rw", "Change the port.")
    assert ran.code == 0
    assert (work / "edge.conf").read_text() == "service = staging\nport = 9000\n"
    assert (work / "new" / "notes.txt").read_text() == "changed\n"
    outputs = [call["output"] for call in ran.found["calls"]]
    assert outputs[0] == "     1\tservice = staging\n     2\tport = 8443"
    assert outputs[3] == "service = staging\nport = 9000\nchanged"


def test_a_mounted_folder_is_read_only_by_default(baleen: Any, work: Path) -> None:
    with ScriptedEndpoint([bash("echo x > edge.conf"), ANSWER]) as server:
        ran = baleen("run", "--json", "-m", server.url, "--mount", str(work), "Which port?")
    assert "Read-only file system" in ran.found["calls"][0]["output"]
    assert "8443" in (work / "edge.conf").read_text()


@pytest.mark.parametrize(
    ("script", "flags", "outcome", "cause"),
    [
        ([bash("true")] * 4, [], "model_error", "repeated-call"),
        ([{"calls": [{"id": "x", "name": "fly", "arguments": "{}"}]}] * 4, [], "model_error",
         "invalid-calls"),
        ([{"reasoning": "Hm."}], [], "model_error", "empty-answer"),
        ([bash("echo 1"), bash("echo 2")], ["--max-turns", "2"], "budget", "turns"),
        ([{**ANSWER, "finish_reason": "length"}], [], "budget", "turn-cut"),
        ([bash("sleep 30")], ["--deadline", "1"], "budget", "deadline"),
    ],
)  # fmt: skip
def test_a_run_without_an_answer_ends_with_its_cause_and_code_1(
    baleen: Any, script: list[dict[str, Any]], flags: list[str], outcome: str, cause: str
) -> None:
    with ScriptedEndpoint(script) as server:
        ran = baleen("run", "--json", "-m", server.url, *flags, "Which port?")
    assert ran.code == 1
    assert (ran.found["outcome"], ran.found["cause"]) == (outcome, cause)


def test_an_invalid_call_is_explained_to_the_model_and_may_be_corrected(baleen: Any) -> None:
    wrong = {"calls": [{"id": "x", "name": "bash", "arguments": '{"cmd": "ls"}'}]}
    with ScriptedEndpoint([wrong, bash("echo ok"), ANSWER]) as server:
        ran = baleen("run", "--json", "-m", server.url, "Which port?")
        told = server.requests[1]["messages"][-1]["content"]
    assert ran.code == 0
    assert told == "[error: missing: command]"


def test_a_command_that_hangs_is_ended_and_the_run_goes_on(baleen: Any) -> None:
    with ScriptedEndpoint([bash("echo begun; sleep 60"), ANSWER]) as server:
        ran = baleen("run", "--json", "-m", server.url, "--command-timeout", "0.5", "Which port?")
    assert ran.code == 0
    assert ran.found["calls"][0]["output"] == "begun\n[timed out]"


def test_a_failed_endpoint_is_an_infra_error_and_the_run_can_be_resumed(
    baleen: Any, work: Path
) -> None:
    script = [bash("echo mark >> marks"), ANSWER]
    with ScriptedEndpoint(script, failures=["none", 500]) as server:
        first = baleen("run", "--json", "-m", server.url, "--mount", f"{work}:rw", "Which port?")
        assert (first.code, first.found["outcome"]) == (1, "infra_error")
        assert "scripted 500" in first.found["message"]
        second = baleen("run", "--json", "--resume", "latest")
    assert (second.code, second.found["answer"]) == (0, "8443")
    assert (work / "marks").read_text() == "mark\n"


def test_what_this_host_does_not_offer_is_one_line_and_code_1(baleen: Any) -> None:
    with ScriptedEndpoint([ANSWER]) as server:
        ran = baleen("run", "--json", "-m", server.url, "--backend", "microvm", "Which port?")
    assert ran.code == 1
    assert ran.found["outcome"] == "infra_error"
    assert "microvm" in ran.found["message"]


def test_a_missing_binary_is_one_line_with_cause_and_remedy(
    baleen: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("BALEEN_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("BALEEN_SANDBOX_BINARY", str(tmp_path / "none"))
    with ScriptedEndpoint([ANSWER]) as server:
        ran = baleen("run", "-m", server.url, "Which port?")
    assert (ran.code, ran.out) == (1, "")
    (line,) = [line for line in ran.err.splitlines() if "infra_error" in line]
    assert "is missing" in line
    assert "build it with" in line


def test_a_folder_that_cannot_be_written_is_one_line(baleen: Any, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    ran = baleen("run", "-m", "http://127.0.0.1:9/v1", "--runs", "file/runs", "Which port?")
    assert (ran.code, ran.out) == (1, "")
    assert ran.err.count("\n") == 1
    assert "file/runs" in ran.err


def test_a_backend_that_does_not_exist_is_wrong_usage_and_leaves_nothing(baleen: Any) -> None:
    with ScriptedEndpoint([ANSWER]) as server:
        ran = baleen("run", "-m", server.url, "--backend", "contianer", "Which port?")
    assert ran.code == 2
    assert "did you mean container?" in ran.err
    assert not Path("runs").exists()


def test_an_endpoint_that_is_not_there_leaves_no_run_folder(baleen: Any) -> None:
    ran = baleen("run", "-m", "http://127.0.0.1:9/v1", "Which port?")
    assert ran.code == 1
    assert "cannot be reached" in ran.err
    assert list(Path("runs").iterdir()) == []


def started(server: ScriptedEndpoint, work: Path, *arguments: str) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "baleen.cli.main", "run", "--json", *arguments]
    if "--resume" not in arguments:
        command += ["-m", server.url, "--mount", f"{work}:rw", "Which port?"]
    return subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, env=dict(os.environ)
    )


def wait_for(path: Path) -> None:
    deadline = time.monotonic() + 30
    while not path.exists():
        assert time.monotonic() < deadline, f"{path} does not appear"
        time.sleep(0.005)


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_cleans_up_and_the_run_can_be_resumed(
    work: Path, number: signal.Signals, code: int, home: Path
) -> None:
    script = [bash("echo mark >> marks; sleep 30"), ANSWER]
    with ScriptedEndpoint(script) as server:
        process = started(server, work)
        wait_for(work / "marks")
        process.send_signal(number)
        assert process.wait(20) == code
        assert process.stdout is not None
        process.stdout.close()
        assert live_boxes() == []
        resumed = started(server, work, "--resume", "latest")
        out, _ = resumed.communicate(timeout=30)
    assert resumed.returncode == 0
    assert json.loads(out)["calls"][0]["source"] == "in_doubt"
    assert (work / "marks").read_text() == "mark\n"


def live_boxes() -> list[Any]:
    import asyncio

    from baleen.sandbox import Sandbox

    return asyncio.run(Sandbox.list())


def test_killed_at_random_moments_every_command_has_run_once(work: Path) -> None:
    script = [bash(f"echo {i} >> marks; sleep 0.05", f"echo x{i} >> marks") for i in range(3)]
    rng = random.Random(5)
    wal = Path("runs/latest/wal")
    num_kills, code, out = 0, -9, ""
    with ScriptedEndpoint([*script, ANSWER]) as server:
        while code != 0:
            arguments = ("--resume", "latest") if wal.exists() else ()
            process = started(server, work, *arguments)
            kill_when_grown(process, wal, rng.randint(1, 1500))
            out, _ = process.communicate()
            code = process.returncode
            num_kills += code != 0
    found = json.loads(out)
    assert found["answer"] == "8443"
    assert all(call["source"] == "box" for call in found["calls"])
    expected = {f"{prefix}{i}": 1 for i in range(3) for prefix in ("", "x")}
    assert Counter((work / "marks").read_text().split()) == expected
    assert num_kills >= 2
