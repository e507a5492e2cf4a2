"""``baleen sandbox``: exit codes, streams and data as a shell user expects them."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

from baleen.sandbox.home import Home

from .conftest import needs_privilege

ENTRY = "from baleen.cli.sandbox import sandbox; sandbox()"


def cli(*words: str, stdin: str = "") -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(p for p in sys.path if p)}
    return subprocess.run(
        [sys.executable, "-c", ENTRY, *words],
        input=stdin,
        capture_output=True,
        text=True,
        timeout=60,
        env=environment,
        check=False,
    )


def test_run_passes_streams_mounts_input_and_exit_code_through(host: Home, tmp_path: Path) -> None:
    (tmp_path / "f").write_text("whale\n")
    line = "cat /conf/f; cat; echo $WORD >&2; exit 5"
    done = cli(
        "run", "-i", "-e", "WORD=krill", "-v", f"{tmp_path}:/conf", "sh", "-c", line, stdin="in\n"
    )
    assert (done.returncode, done.stdout, done.stderr) == (5, "whale\nin\n", "krill\n")
    assert cli("run", "--timeout", "0.3", "sleep", "60").returncode == 124
    assert cli("ps", "--json").stdout.strip() == "[]"


def test_a_kept_box_is_listed_used_copied_from_logged_and_removed(
    host: Home, tmp_path: Path
) -> None:
    box = cli("run", "--keep", "--job", "j", "sh", "-c", "echo hi > /tmp/x").stderr.strip()
    (row,) = json.loads(cli("ps", "--json").stdout)
    assert (row["box"], row["job"]) == (box, "j")
    assert box in cli("ps").stdout
    result = json.loads(cli("exec", "--json", box, "cat", "/tmp/x").stdout)
    assert (result["exit_code"], result["stdout"]) == (0, "hi\n")
    assert cli("cp", f"{box}:/tmp/x", str(tmp_path / "x")).returncode == 0
    assert (tmp_path / "x").read_text() == "hi\n"
    assert cli("cp", str(tmp_path / "x"), f"{box}:/srv/y").returncode == 0
    assert cli("exec", box, "cat", "/srv/y").stdout == "hi\n"
    assert cli("rm", box).stdout.strip() == box
    lines = cli("logs", box).stdout.splitlines()
    assert [line.split()[2] for line in lines] == ["open", *["intent", "result"] * 3, "close"]
    assert "cat /tmp/x" in lines[3]
    records = [json.loads(line) for line in cli("logs", "--json", box).stdout.splitlines()]
    assert records[-1]["payload"] == {"cause": "stopped"}


def test_reap_ends_the_boxes_of_a_job(host: Home) -> None:
    boxes = {cli("run", "--keep", "--job", "night", "true").stderr.strip() for _ in range(2)}
    other = cli("run", "--keep", "--job", "day", "true").stderr.strip()
    assert set(cli("reap", "--job", "night").stdout.split()) == boxes
    assert [row["box"] for row in json.loads(cli("ps", "--json").stdout)] == [other]


@needs_privilege
def test_boxes_are_forked_paused_and_snapshotted_from_the_shell(host: Home) -> None:
    box = cli("run", "-d", "--job", "j", "sh", "-c", "echo kept > /root/file").stderr.strip()
    children = cli("fork", "-n", "2", box).stdout.split()
    assert len(children) == 2
    assert cli("exec", children[1], "cat", "/root/file").stdout == "kept\n"
    assert cli("pause", box).stdout == f"{box}\n"
    states = {row["box"]: row["paused"] for row in json.loads(cli("ps", "--json").stdout)}
    assert (states[box], states[children[0]]) == (True, False)
    assert sorted(cli("resume", "--job", "j").stdout.split()) == sorted([box, *children])
    image = cli("snapshot", box).stdout.strip()
    assert cli("run", "--image", image, "cat", "/root/file").stdout == "kept\n"
    assert cli("pause").returncode != 0
    assert cli("rm", box, *children).returncode == 0
    assert "close" in cli("logs", "-f", box).stdout
