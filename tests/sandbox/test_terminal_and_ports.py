"""Terminals and forwarded ports."""

from __future__ import annotations

import asyncio
import urllib.request

from baleen.sandbox import Process, Sandbox


async def until(process: Process, word: bytes) -> bytes:
    """Reads a terminal until a word has come."""
    seen = b""
    async for output in process:
        seen += output.data
        if word in seen:
            return seen
    return seen


async def test_a_command_on_a_terminal_sees_its_size_and_resizing(box: Sandbox) -> None:
    shell = box.pty(["bash", "--norc"], rows=30, columns=100)
    reading = asyncio.create_task(until(shell, b"marker-2"))
    await shell.write("tty; stty size; echo marker-$((1))\n")
    await asyncio.sleep(0.5)
    await shell.resize(11, 22)
    await shell.write("stty size; echo marker-$((1+1))\n")
    seen = await asyncio.wait_for(reading, 20)
    assert b"/dev/pts/0" in seen
    assert b"30 100" in seen
    assert b"11 22" in seen
    await shell.write("exit 3\n")
    assert (await asyncio.wait_for(shell.wait(), 10)).exit_code == 3


async def test_the_end_of_input_reaches_a_command_on_a_terminal(box: Sandbox) -> None:
    reader = box.pty(["cat"])
    reading = asyncio.create_task(until(reader, b"whale\r\nwhale"))
    await reader.write("whale\n")
    await asyncio.wait_for(reading, 10)
    await reader.write("", eof=True)
    assert (await asyncio.wait_for(reader.wait(), 10)).exit_code == 0


async def test_control_c_on_a_terminal_reaches_the_foreground_command(box: Sandbox) -> None:
    sleeper = box.pty(["bash", "-c", "echo ready; sleep 60"])
    reading = asyncio.create_task(until(sleeper, b"ready"))
    await asyncio.wait_for(reading, 20)
    await sleeper.write("\x03")
    assert (await asyncio.wait_for(sleeper.wait(), 10)).exit_code == 130


async def test_without_a_terminal_a_command_has_none(box: Sandbox) -> None:
    assert (await box.run(["tty"])).text == "not a tty\n"


SERVER = "python3 -m http.server --bind 127.0.0.1 --directory /srv 8000"


async def test_a_port_of_the_box_answers_on_the_hosts_loopback(box: Sandbox) -> None:
    await box.run(["mkdir", "-p", "/srv"])
    await box.files.write("/srv/big", bytes(5_000_000))
    await box.shell(f"{SERVER} > /dev/null 2>&1 &")
    address = await box.port(8000)
    assert await box.port(8000) == address
    for _ in range(100):
        try:
            data = await asyncio.to_thread(_get, f"http://{address}/big")
            break
        except OSError:
            await asyncio.sleep(0.1)  # the server is still starting
    assert data == bytes(5_000_000)
    many = await asyncio.gather(
        *(asyncio.to_thread(_get, f"http://{address}/big") for _ in range(8))
    )
    assert all(len(content) == 5_000_000 for content in many)


def _get(url: str) -> bytes:
    with urllib.request.urlopen(url, timeout=20) as answer:
        content: bytes = answer.read()
        return content


async def test_a_port_where_nobody_listens_closes_the_connection(box: Sandbox) -> None:
    host, port = (await box.port(9)).split(":")
    reader, writer = await asyncio.open_connection(host, int(port))
    assert await asyncio.wait_for(reader.read(), 5) == b""
    writer.close()
    await writer.wait_closed()
