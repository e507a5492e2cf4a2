"""Running commands: results, limits, timeouts, what stays and what dies."""

from __future__ import annotations

import asyncio
import time

import pytest

from baleen.errors import UsageError
from baleen.sandbox import BoxGoneError, Sandbox
from baleen.sandbox.home import Home

from .conftest import needs_privilege


async def test_streams_and_exit_code_come_back_apart(box: Sandbox) -> None:
    result = await box.run(["sh", "-c", "echo out; echo err >&2; exit 7"])
    assert (result.exit_code, result.stdout, result.stderr) == (7, b"out\n", b"err\n")
    assert not result.timed_out
    assert not result.truncated
    assert not result.replayed
    assert 0 < result.duration_s < 5


async def test_output_is_bytes_and_text_is_str(box: Sandbox) -> None:
    result = await box.run(["printf", r"\377\000ok"])
    assert result.stdout == b"\xff\0ok"
    assert result.text == "\ufffd\0ok"


async def test_a_signal_shows_as_128_plus_its_number(box: Sandbox) -> None:
    assert (await box.run(["sh", "-c", "kill -TERM $$"])).exit_code == 143


async def test_commands_that_do_not_exist_give_127_and_folders_126(box: Sandbox) -> None:
    missing = await box.run(["no-such-program"])
    assert missing.exit_code == 127
    assert b"no-such-program: not found" in missing.stderr
    assert (await box.run(["/etc"])).exit_code == 126


async def test_environment_folder_and_stdin_are_the_callers(box: Sandbox) -> None:
    result = await box.run(
        ["sh", "-c", "cat; pwd; echo $WORD; echo $HOME"],
        cwd="/usr",
        env={"WORD": "whale"},
        stdin="krill\n",
    )
    assert result.text.split() == ["krill", "/usr", "whale", "/root"]


@needs_privilege
async def test_a_command_runs_as_any_user_of_the_box(box: Sandbox) -> None:
    for user in ("1000:1000", "1000", "user"):
        result = await box.run(["sh", "-c", "id -u; echo $HOME; touch /etc/x"], user=user)
        assert result.text.split() == ["1000", "/home/user"]
        assert b"Permission denied" in result.stderr


async def test_an_unknown_user_or_folder_is_a_result_of_the_command(box: Sandbox) -> None:
    nobody = await box.run(["true"], user="ahab")
    nowhere = await box.run(["true"], cwd="/nowhere")
    assert (nobody.exit_code, nowhere.exit_code) == (126, 126)
    assert b"ahab" in nobody.stderr
    assert b"/nowhere" in nowhere.stderr


async def test_large_stdin_and_output_pass_whole(box: Sandbox) -> None:
    data = bytes(range(256)) * 8_000
    result = await box.run(["cat"], stdin=data)
    assert result.stdout == data


async def test_output_beyond_the_cap_is_dropped_and_flagged(box: Sandbox) -> None:
    result = await box.run(
        ["sh", "-c", "yes | head -c 300000; echo end >&2"], max_output_bytes=1000
    )
    assert result.stdout == (b"y\n" * 500)
    assert result.stderr == b"end\n"
    assert result.truncated
    assert result.exit_code == 0


async def test_an_endless_flood_ends_at_the_timeout_with_bounded_output(box: Sandbox) -> None:
    result = await box.run(["yes"], timeout_s=0.5, max_output_bytes=10_000)
    assert (result.exit_code, result.timed_out, len(result.stdout)) == (124, True, 10_000)


@pytest.mark.parametrize(
    ("name", "line"),
    [
        ("setsid", "setsid sleep 7771 & sleep 60"),
        ("double fork", "(setsid sh -c 'sleep 7772 & exit' &) ; sleep 60"),
        ("ignored signals", "trap '' TERM INT HUP; sleep 7773 & sleep 60"),
        ("stopped process", "sleep 7774 & kill -STOP $!; sleep 60"),
        ("bomb", "bomb() { bomb | bomb & }; bomb; sleep 60"),
    ],
)
async def test_timeout_kills_the_whole_tree(box: Sandbox, name: str, line: str) -> None:
    started = time.monotonic()
    result = await box.run(["bash", "-c", line], timeout_s=0.5)
    assert (result.exit_code, result.timed_out) == (124, True)
    assert time.monotonic() - started < 8
    left = await box.run(["ps", "-A", "-o", "pid=,args="])
    assert "sleep" not in left.text, name
    assert len(left.text.splitlines()) <= 5, left.text
    assert (await box.run(["echo", "usable"])).text == "usable\n"


async def test_a_command_that_kills_its_supervisor_leaves_nothing_behind(box: Sandbox) -> None:
    line = "setsid sleep 7775 & setsid sleep 60 & kill -9 $PPID; sleep 60"
    result = await box.run(["bash", "-c", line], timeout_s=5)
    assert result.exit_code == 137
    await asyncio.sleep(0.2)
    assert "sleep" not in (await box.run(["ps", "-A", "-o", "args="])).text


async def test_a_waiting_supervisor_that_something_killed_is_replaced(box: Sandbox) -> None:
    """After a few commands one waits: a child of the spawner that is not this command's."""
    for _ in range(5):
        killed = await box.shell("sleep 0.1; kill -9 $(pgrep -P 2 | grep -vx $PPID)")
        assert (await box.run(["echo", "still here"])).text == "still here\n"
    assert killed.exit_code == 0


async def test_commands_of_one_box_run_beside_one_another(box: Sandbox) -> None:
    for _ in range(3):
        await box.run(["true"])
    started = time.monotonic()
    results = await asyncio.gather(*(box.shell(f"sleep 1; echo {n}") for n in range(20)))
    assert [result.text for result in results] == [f"{n}\n" for n in range(20)]
    assert time.monotonic() - started < 15


async def test_a_box_survives_kill_everything_from_inside(box: Sandbox) -> None:
    result = await box.run(
        ["bash", "-c", "kill -9 -1; kill -9 1 2 3; echo unreachable"], timeout_s=5
    )
    assert result.exit_code in (137, 0)
    for _ in range(3):
        assert (await box.run(["echo", "still here"])).text == "still here\n"


async def test_background_children_live_on_and_do_not_hold_the_caller(box: Sandbox) -> None:
    started = time.monotonic()
    result = await box.run(["sh", "-c", "sleep 1000 & echo $!"], timeout_s=30)
    assert time.monotonic() - started < 5
    pid = result.text.strip()
    assert (await box.run(["kill", "-0", pid])).exit_code == 0
    await box.run(["kill", pid])


async def test_a_background_writer_is_not_killed_by_its_closed_pipe(box: Sandbox) -> None:
    await box.run(["sh", "-c", "(sleep 0.4; echo late; echo done > /tmp/mark; sleep 5) & true"])
    await asyncio.sleep(1)
    assert (await box.run(["cat", "/tmp/mark"])).text == "done\n"


async def test_many_commands_run_at_once_without_mixing(box: Sandbox) -> None:
    runs = [box.run(["sh", "-c", f"sleep 0.1; echo {n}; echo {n} >&2"]) for n in range(20)]
    for n, result in enumerate(await asyncio.gather(*runs)):
        assert result.stdout == result.stderr == f"{n}\n".encode()


async def test_a_stream_gives_output_as_it_is_written(box: Sandbox) -> None:
    process = box.stream(["sh", "-c", "echo one; sleep 0.5; echo two >&2"])
    seen = []
    async for output in process:
        seen.append((output.stream, output.data, time.monotonic()))
    assert [entry[:2] for entry in seen] == [("stdout", b"one\n"), ("stderr", b"two\n")]
    assert seen[1][2] - seen[0][2] > 0.3
    assert (await process.wait()).stdout == b"one\n"


async def test_a_stream_takes_input_and_signals(box: Sandbox) -> None:
    process = box.stream(["cat"], stdin_open=True)
    waiting = asyncio.create_task(process.wait())
    await asyncio.sleep(0.2)
    await process.write("a")
    await process.write("b", eof=True)
    assert (await waiting).text == "ab"
    sleeper = box.stream(["sleep", "60"])
    waiting = asyncio.create_task(sleeper.wait())
    await asyncio.sleep(0.2)
    await sleeper.send_signal(15)
    assert (await waiting).exit_code == 143


async def test_wrong_arguments_are_refused_before_anything_runs(box: Sandbox) -> None:
    with pytest.raises(UsageError, match="shell"):
        await box.run("ls -l")
    with pytest.raises(UsageError, match="timeout_s"):
        await box.run(["true"], timeout_s=0)
    with pytest.raises(UsageError, match="max_output_bytes"):
        await box.run(["true"], max_output_bytes=1 << 40)


async def test_a_stream_of_a_closed_box_is_refused(host: Home) -> None:
    box = await Sandbox.create()
    await box.close()
    with pytest.raises(BoxGoneError):
        async for _ in box.stream(["true"]):
            pass


async def test_a_closed_box_is_gone_with_its_cause(box: Sandbox) -> None:
    again = await Sandbox.attach(box.id)
    await box.close()
    await box.close()
    with pytest.raises(BoxGoneError) as caught:
        await again.run(["true"])
    assert caught.value.cause == "stopped"
    await again.detach()
    with pytest.raises(BoxGoneError):
        await Sandbox.attach(box.id)
