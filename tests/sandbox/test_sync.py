"""The same names without await."""

from __future__ import annotations

import inspect
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

import baleen.sandbox as asynchronous
from baleen.sandbox import BoxGoneError, sync
from baleen.sandbox.doctor import checks
from baleen.sandbox.home import Home


def test_a_box_runs_commands_files_and_streams_without_await(host: Home, tmp_path: Path) -> None:
    with sync.Sandbox.create(labels={"a": "b"}) as box:
        assert box.run(["echo", "hi"]).text == "hi\n"
        assert box.shell("exit 3").exit_code == 3
        box.files.write("/tmp/x", "y")
        assert box.files.read("/tmp/x") == b"y"
        process = box.stream(["sh", "-c", "echo 1; echo 2 >&2"])
        assert sorted((o.stream, o.data) for o in process) == [
            ("stderr", b"2\n"),
            ("stdout", b"1\n"),
        ]
        assert process.wait().exit_code == 0
        again = sync.Sandbox.attach(box.id)
        assert again.trajectory == box.trajectory
        assert [b["box"] for b in sync.Sandbox.list({"a": "b"})] == [box.id]
        again.detach()
    with pytest.raises(BoxGoneError):
        sync.Sandbox.attach(box.id)


def test_threads_use_boxes_at_the_same_time(host: Home) -> None:
    def work(number: int) -> str:
        with sync.Sandbox.create() as box:
            return box.run(["sh", "-c", f"sleep 0.3; echo {number}"]).text

    with ThreadPoolExecutor(8) as threads:
        assert list(threads.map(work, range(8))) == [f"{n}\n" for n in range(8)]


@pytest.mark.parametrize("name", ["Sandbox", "Files", "Process"])
def test_the_twin_has_every_public_name(name: str) -> None:
    def public(cls: type) -> set[str]:
        return {n for n, _ in inspect.getmembers(cls) if not n.startswith("_")}

    assert public(getattr(asynchronous, name)) <= public(getattr(sync, name)) | {"id", "files"}


def test_the_doctor_says_what_will_be_used(host: Home) -> None:
    found = {check.name: check for check in checks()}
    assert found["linux"].ok
    assert found["will use"].ok
    assert "container" in found["will use"].detail
    assert all(check.ok or check.remedy for check in found.values())
