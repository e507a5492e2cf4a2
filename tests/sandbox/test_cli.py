"""``baleen sandbox``: exit codes, streams and data as a shell user expects them."""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import json
import os
import pty
import struct
import subprocess
import sys
import termios
from pathlib import Path

import pytest

from baleen.sandbox.home import Home

from .conftest import needs_privilege

ENTRY = "from baleen.cli.sandbox import sandbox; sandbox()"


def environment() -> dict[str, str]:
    return {**os.environ, "PYTHONPATH": os.pathsep.join(p for p in sys.path if p)}


def cli(*words: str, stdin: str = "") -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", ENTRY, *words],
        input=stdin,
        capture_output=True,
        text=True,
        timeout=60,
        env=environment(),
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


def test_an_unknown_option_is_wrong_usage_and_one_of_the_command_its_own(host: Home) -> None:
    for words in (("run", "--bogus", "true"), ("exec", "--bogus", "b", "true")):
        done = cli(*words)
        assert done.returncode == 2
        assert "No such option" in done.stderr
    assert cli("run", "echo", "--bogus", "-e").stdout == "--bogus -e\n"
    assert cli("run", "--", "echo", "--", "-i").stdout == "-- -i\n"


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


def test_input_passes_while_it_comes_and_its_end_too(host: Home) -> None:
    """A pipe that stays open must not hold back what is in it already."""
    process = subprocess.Popen(
        [sys.executable, "-c", ENTRY, "run", "-i", "sh", "-c", "read line; echo got $line; cat"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        env=environment(),
    )
    assert process.stdin is not None
    assert process.stdout is not None
    process.stdin.write(b"one\n")
    process.stdin.flush()
    assert process.stdout.readline() == b"got one\n"
    process.stdin.write(b"two\n")
    out, _ = process.communicate(timeout=30)
    assert (out, process.returncode) == (b"two\n", 0)


def test_a_command_that_reads_nothing_ends_though_its_input_stays_open(host: Home) -> None:
    process = subprocess.Popen(
        [sys.executable, "-c", ENTRY, "run", "-i", "true"], stdin=subprocess.PIPE, env=environment()
    )
    assert process.wait(30) == 0
    assert process.stdin is not None
    process.stdin.close()


def test_a_file_as_input_is_part_of_the_recorded_command(host: Home, tmp_path: Path) -> None:
    (tmp_path / "in").write_text("whale\n")
    with (tmp_path / "in").open() as file:
        done = subprocess.run(
            [sys.executable, "-c", ENTRY, "run", "-di", "cat"],
            stdin=file,
            capture_output=True,
            text=True,
            env=environment(),
            check=True,
        )
    assert done.stdout == "whale\n"
    box = done.stderr.strip()
    intent = json.loads(cli("logs", "--json", box).stdout.splitlines()[1])
    assert intent["payload"]["job"]["stdin"] == "whale\n"
    assert cli("rm", box).returncode == 0


def test_a_signal_to_the_command_line_ends_its_box(host: Home) -> None:
    process = subprocess.Popen(
        [sys.executable, "-c", ENTRY, "run", "sh", "-c", "echo up; sleep 600"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env=environment(),
    )
    assert process.stdout is not None
    assert process.stdout.readline() == b"up\n"
    process.terminate()
    process.communicate(timeout=30)
    assert process.returncode == 143
    assert cli("ps", "-q").stdout == ""


def test_variables_folder_and_user_hold_on_a_terminal_too(host: Home) -> None:
    """On a terminal of this side, whose size and keys reach the one in the box."""
    line = "stty size; echo $WHALE in $PWD; tty -s && read key && echo key $key; exit 7"
    words = ("run", "-it", "-e", "WHALE=krill", "-w", "/srv", "sh", "-c", line)
    pid, terminal = pty.fork()
    if pid == 0:
        os.execve(sys.executable, [sys.executable, "-c", ENTRY, *words], environment())
    fcntl.ioctl(terminal, termios.TIOCSWINSZ, struct.pack("4H", 33, 99, 0, 0))
    seen = b""
    with contextlib.suppress(OSError):  # how a terminal says that the other side has closed
        while data := os.read(terminal, 4096):
            if b"in /srv" in seen + data and b"in /srv" not in seen:
                os.write(terminal, b"plankton\r")
            seen += data
    _, status = os.waitpid(pid, 0)
    os.close(terminal)
    assert os.waitstatus_to_exitcode(status) == 7, seen
    assert b"33 99" in seen
    assert b"krill in /srv" in seen
    assert b"key plankton" in seen


def test_a_bare_variable_has_the_value_that_it_has_here(
    host: Home, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WHALE", "krill")
    line = "echo $WHALE ${NOWHERE-unset} $OWN"
    done = cli("run", "-e", "WHALE", "-e", "NOWHERE", "-e", "OWN=a=b", "sh", "-c", line)
    assert done.stdout == "krill unset a=b\n"


def test_a_copy_goes_where_docker_puts_it(host: Home, tmp_path: Path) -> None:
    box = cli("run", "-d", "sh", "-c", "mkdir -p /srv/d; echo new > /srv/d/f").stderr.strip()
    (tmp_path / "into").mkdir()
    (tmp_path / "old").write_text("old")
    for target in ("into", "old", "fresh"):
        assert cli("cp", f"{box}:/srv/d/f", str(tmp_path / target)).returncode == 0
    assert {(tmp_path / name).read_text() for name in ("into/f", "old", "fresh")} == {"new\n"}
    assert cli("cp", f"{box}:/srv/d", str(tmp_path / "into")).returncode == 0
    assert (tmp_path / "into/d/f").read_text() == "new\n"
    assert cli("cp", f"{box}:/srv/d", str(tmp_path / "into")).returncode != 0
    assert sorted(path.name for path in tmp_path.iterdir()) == ["fresh", "into", "old"]
    for source, target in (("old", "/opt"), ("old", "/opt/named"), ("into", "/opt/")):
        assert cli("cp", str(tmp_path / source), f"{box}:{target}").returncode == 0
    listed = cli("exec", box, "find", "/opt", "-type", "f").stdout.split()
    assert sorted(listed) == ["/opt/into/d/f", "/opt/into/f", "/opt/named", "/opt/old"]
    assert cli("rm", "--json", box).stdout == json.dumps({"boxes": [box]}) + "\n"
    assert cli("rm", box).returncode != 0
    assert cli("rm", "-f", box).returncode == 0


def test_every_limit_and_label_of_a_box_is_an_option(host: Home) -> None:
    words = ("--disk", "9", "--network", "a.example:443,b.example:80", "--ttl", "77", "-l", "a=b")
    box = cli("run", "-d", *words, "true").stderr.strip()
    assert cli("ps", "-q", "-l", "a=b").stdout.split() == [box]
    assert cli("ps", "-q", "-l", "a=c").stdout == ""
    spec = json.loads(cli("logs", "--json", box).stdout.splitlines()[0])["payload"]["spec"]
    assert (spec["disk_mb"], spec["ttl_idle_s"]) == (9, 77)
    assert spec["network"] == ["a.example:443", "b.example:80"]
    assert json.loads(cli("reap", "--json").stdout) == {"boxes": [box]}
    result = json.loads(cli("run", "--rm", "--json", "echo", "x").stdout)
    assert (result["stdout"], result["box"][0]) == ("x\n", "b")


@needs_privilege
def test_an_image_brings_its_own_command(host: Home, tmp_path: Path) -> None:
    (tmp_path / "Dockerfile").write_text('FROM host\nENTRYPOINT ["echo", "from"]\nCMD ["image"]\n')
    from baleen.sandbox.images.dockerfile.builder import build

    asyncio.run(build(host, tmp_path, "own:1"))
    assert cli("run", "--image", "own:1").stdout == "from image\n"
    assert cli("run", "--image", "own:1", "echo", "given").stdout == "given\n"
    assert "say what to run" in cli("run").stderr
