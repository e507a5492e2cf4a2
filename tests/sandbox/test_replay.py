"""Trajectories done again: the same results, or the first that differs."""

from __future__ import annotations

import asyncio
import json
import shutil
from pathlib import Path

import pytest
from click.testing import CliRunner

from baleen.cli.replay import replay
from baleen.sandbox import Sandbox, TrajectoryError, UnsupportedError
from baleen.sandbox.home import Home
from baleen.sandbox.images.errors import ImageError
from baleen.sandbox.replay import Trajectory, verify
from baleen.sandbox.trajectory import read

STEPS = ["echo one > /tmp/file", "cat /tmp/file; echo two >&2", "ls /nowhere", "wc -c < /tmp/file"]


async def recorded(log: Path, *lines: str, **options: object) -> Path:
    """A log of a box in which these lines have run."""
    async with await Sandbox.create(trajectory=log, **options) as box:  # type: ignore[arg-type]
        for number, line in enumerate(lines):
            await box.shell(line, key=f"step-{number}")
    return log


async def test_what_depends_on_nothing_else_gives_the_same_results(
    host: Home, tmp_path: Path
) -> None:
    log = await recorded(tmp_path / "log", *STEPS)
    before = log.read_bytes()
    verdict = await verify(log)
    assert (verdict.commands, verdict.divergence) == (4, None)
    assert log.read_bytes() == before  # the log of the first time stays as it was


async def test_the_first_result_that_differs_is_named_with_its_field(
    host: Home, tmp_path: Path
) -> None:
    (tmp_path / "conf").mkdir()
    (tmp_path / "conf/port").write_text("host\nport 80\n")
    mounts = [(tmp_path / "conf", "/conf", "ro")]
    log = await recorded(tmp_path / "log", "true", "cat /conf/port", "exit 3", mounts=mounts)
    (tmp_path / "conf/port").write_text("host\nport 81\n")
    verdict = await verify(log)
    found = verdict.divergence
    assert found is not None
    assert verdict.commands == 2
    (intent,) = (r for r in read(log) if r.key == "step-1" and r.kind == "intent")
    assert (found.seq, found.key, found.field) == (intent.seq, "step-1", "stdout")
    assert (found.expected, found.seen) == (
        "byte 5 of 13: 'port 80\\n'",
        "byte 5 of 13: 'port 81\\n'",
    )


async def test_it_stands_on_the_recorded_layers_whatever_the_names_mean_today(
    host: Home, tmp_path: Path
) -> None:
    async with await Sandbox.create() as box:
        await box.shell("echo first > /srv/what")
        await box.snapshot(name="replayed:1")
    log = await recorded(tmp_path / "log", "cat /srv/what", image="replayed:1")
    async with await Sandbox.create() as box:
        await box.shell("echo second > /srv/what")
        await box.snapshot(name="replayed:1")
    assert (await verify(log)).divergence is None
    (layer,) = Trajectory(log).first["image"]["layers"]
    kept = host.images / "layers" / f"{layer['digest']}.erofs"
    kept.rename(tmp_path / "layer")
    with pytest.raises(ImageError, match="is not in the store"):
        await verify(log)
    shutil.move(tmp_path / "layer", kept)


async def test_a_box_that_wrote_to_the_host_is_not_done_again(host: Home, tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    mounts = [(tmp_path / "out", "/out", "rw")]
    log = await recorded(tmp_path / "log", "echo x >> /out/count", mounts=mounts)
    with pytest.raises(UnsupportedError, match="wrote to"):
        await verify(log)
    assert (tmp_path / "out/count").read_text() == "x\n"


async def test_the_log_names_versions_layers_and_limits_it_was_recorded_with(
    host: Home, tmp_path: Path
) -> None:
    trajectory = Trajectory(await recorded(tmp_path / "log", "true", memory_mb=64))
    assert set(trajectory.first["provenance"]) == {"baleen", "kernel", "limits"}
    assert trajectory.first["image"]["base"] == "host"
    assert trajectory.first["spec"]["memory_mb"] == 64
    remarks = list(trajectory.remarks({"baleen": "0", "kernel": "2.4", "limits": "none"}))
    assert any(remark.endswith("is 2.4") for remark in remarks)


async def test_what_is_in_doubt_ends_it_with_a_remark(host: Home, tmp_path: Path) -> None:
    log = await recorded(tmp_path / "log", "true", "echo two")
    (last,) = (r for r in read(log) if r.key == "step-1" and r.kind == "result")
    log.write_bytes(log.read_bytes()[: last.offset])
    verdict = await verify(log)
    assert (verdict.commands, verdict.divergence) == (1, None)
    assert any("has no result" in remark for remark in verdict.remarks)


def test_a_file_that_is_no_log_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "x").write_text("no log")
    with pytest.raises(TrajectoryError):
        Trajectory(tmp_path / "x")


@pytest.mark.parametrize("lines", [("echo same",), ("date +%N",)])
def test_the_command_shows_a_run_and_exits_1_where_doing_it_again_differs(
    host: Home, tmp_path: Path, lines: tuple[str, ...]
) -> None:
    (tmp_path / "runs/r1").mkdir(parents=True)
    asyncio.run(recorded(tmp_path / "runs/r1/sandbox.log", *lines))
    options = ["r1", "--runs", str(tmp_path / "runs")]
    shown = CliRunner().invoke(replay, options)
    assert shown.exit_code == 0
    assert lines[0].split()[0] in shown.stdout
    done = CliRunner().invoke(replay, [*options, "--verify", "--json"])
    verdict = json.loads(done.stdout)
    differs = lines[0].startswith("date")
    assert done.exit_code == int(differs)
    assert (verdict["divergence"] is not None) == differs
