"""`baleen chat` in front of a gateway whose model is a script."""

from __future__ import annotations

import asyncio
import os
import pty
import sys
from pathlib import Path
from typing import Any

import pytest

from baleen.server.upstreams.scripted import Line

from ..server.conftest import Serve, Served, serve, tokenizer

__all__ = ["serve", "tokenizer"]  # fixtures
SLOW = "Hm.</think>" + "slowly " * 400


def command(served: Served, *options: str) -> list[str]:
    url = f"{served.url}/v1"
    return [sys.executable, "-m", "baleen.cli.main", "chat", "--model", url, *options]


async def talk(served: Served, lines: str, *options: str) -> tuple[int, str, str]:
    """Exit code, stdout and stderr of a talk whose lines come from a pipe."""
    pipe = asyncio.subprocess.PIPE
    process = await asyncio.create_subprocess_exec(
        *command(served, *options), stdin=pipe, stdout=pipe, stderr=pipe
    )
    out, err = await asyncio.wait_for(process.communicate(lines.encode()), 60)
    assert process.returncode is not None
    return process.returncode, out.decode(), err.decode()


def prompts_of(served: Served) -> list[str]:
    segments_of = served.gateway.vocabulary.segments_of
    return ["".join(t for t, _ in segments_of(asked.ids)) for asked in served.upstream.asked]


async def test_answers_go_to_stdout_and_reasoning_to_stderr(serve: Serve) -> None:
    served = await serve("I think so.</think>Yes.")
    code, out, err = await talk(served, "Is it?\n\nAre you sure?\n", "--system", "Be brief.")
    assert (code, out) == (0, "Yes.\nYes.\n")
    assert err.count("I think so.") == 2
    first, second = prompts_of(served)
    assert "Be brief." in first
    assert "Is it?" in first
    assert "Yes." in second
    assert "Are you sure?" in second


async def test_commands_set_how_the_model_thinks(serve: Serve) -> None:
    served = await serve("No thoughts.</think>Yes.", max_tokens_limit=1_000)
    lines = "/nothink\nOne?\n/think\nTwo?\n/think-max\nThree?\n/ctx\n/new\nFour?\n"
    code, _, err = await talk(served, lines, "--max-tokens", "50")
    assert code == 0
    one, two, three, four = prompts_of(served)
    assert one.endswith("</think>")
    assert two.endswith("<think>")
    assert three != two
    assert "Three?" not in four
    assert "of 1048576," in err


async def test_a_file_stands_in_front_of_the_next_question_only(
    serve: Serve, tmp_path: Path
) -> None:
    served = await serve("Hm.</think>Seen.")
    path = tmp_path / "notes.txt"
    path.write_text("the port is 8471")
    lines = f"/read {path}\nWhich port?\n/new\nAnd now?\n/read {tmp_path}/none\n"
    code, out, err = await talk(served, lines)
    assert (code, out) == (1, "Seen.\nSeen.\n")
    assert "none cannot be read" in err
    first, second = prompts_of(served)
    assert "notes.txt:\n```\nthe port is 8471\n```\n\nWhich port?" in first
    assert "8471" not in second


async def test_what_goes_wrong_is_said_and_the_talk_goes_on(serve: Serve) -> None:
    served = await serve("Hm.</think>Yes.", max_tokens_limit=10)
    code, out, err = await talk(served, "/frobnicate\n/help\nAgain?\n/quit\nNever asked.\n")
    assert (code, out) == (0, "Yes.\n")
    assert "there is no command /frobnicate" in err
    assert "/think-max" in err
    assert len(served.upstream.asked) == 1
    code, out, err = await talk(served, "Too long?\n", "--max-tokens", "11")
    assert (code, out) == (1, "")
    assert "Invalid max_tokens value" in err


async def test_an_endpoint_that_is_not_there_is_named(serve: Serve) -> None:
    served = await serve("")
    served.url = "http://127.0.0.1:9"
    code, out, err = await talk(served, "Hello?\n")
    assert (code, out) == (1, "")
    assert "http://127.0.0.1:9/v1 cannot be reached" in err


class Terminal:
    """A talk at a terminal."""

    def __init__(self, arguments: list[str]) -> None:
        self.seen = ""
        pid, self._descriptor = pty.fork()
        if pid == 0:
            os.execv(arguments[0], arguments)
        self.pid = pid
        os.set_blocking(self._descriptor, False)

    def type(self, text: str) -> None:
        os.write(self._descriptor, text.encode())

    async def until(self, words: str) -> None:
        """Wait until something is shown, behind what was waited for before."""
        async with asyncio.timeout(60):
            while words not in self.seen:
                await asyncio.sleep(0.02)
                try:
                    self.seen += os.read(self._descriptor, 65_536).decode(errors="replace")
                except BlockingIOError:
                    continue
        self.seen = self.seen.partition(words)[2]

    def ended(self) -> int:
        _, status = os.waitpid(self.pid, 0)
        os.close(self._descriptor)
        return os.waitstatus_to_exitcode(status)


async def test_ctrl_c_ends_the_answer_and_ctrl_d_the_talk(serve: Serve) -> None:
    served = await serve("")

    def say(asked: Any) -> Line | str:
        return Line(SLOW, delay_s=0.02) if len(served.upstream.asked) == 1 else "Hm.</think>Quick."

    served.upstream.script = say
    terminal = Terminal(command(served))
    await terminal.until("Ctrl-D ends the talk")
    await terminal.until("> ")
    terminal.type("Tell me.\n")
    await terminal.until("slowly slowly")
    terminal.type("\x03")
    await terminal.until("the answer was broken off")
    async with asyncio.timeout(10):
        while served.upstream.num_running:
            await asyncio.sleep(0.02)
    await terminal.until("> ")
    terminal.type("Again?\n")
    await terminal.until("Quick.")
    await terminal.until("> ")
    assert "Tell me." not in prompts_of(served)[-1]
    terminal.type("\x04")
    assert await asyncio.to_thread(terminal.ended) == 0


async def test_nano_is_served_within_the_process() -> None:
    pipe = asyncio.subprocess.PIPE
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "baleen.cli.main", "chat", "--max-tokens", "12"),
        stdin=pipe,
        stdout=pipe,
        stderr=pipe,
    )
    out, err = await asyncio.wait_for(process.communicate(b"Hello.\n/ctx\n"), 120)
    assert process.returncode == 0, err.decode()
    assert "of 4096," in err.decode()
    assert "was trained to" in err.decode()
    assert out or "cut off" in err.decode()


@pytest.mark.parametrize("model", ["no-such-folder", "ftp://x"])
async def test_a_model_that_is_not_there_is_named(model: str) -> None:
    pipe = asyncio.subprocess.PIPE
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "baleen.cli.main", "chat", "-m", model), stdin=pipe, stderr=pipe
    )
    _, err = await asyncio.wait_for(process.communicate(b""), 60)
    assert process.returncode == 2
    assert "Traceback" not in err.decode()
    assert model in err.decode()
