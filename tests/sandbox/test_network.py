"""What a box can reach: nothing, what a list names, or the internet; and only through its proxy.

The other side is a server of this test on addresses of the host's loopback, which also answers the
positive control: what is refused to a box works from the host.
"""

from __future__ import annotations

import asyncio
import urllib.request
from collections.abc import AsyncIterator
from dataclasses import dataclass, field

import pytest

from baleen.errors import UsageError
from baleen.sandbox import Allowlist, Sandbox
from baleen.sandbox.egress import is_public
from baleen.sandbox.home import Home
from baleen.sandbox.trajectory import Kind, read

from .conftest import kill_edge

ADDRESS = "127.0.0.2"
"""Of the host's loopback; not the one that programs never ask a proxy for."""

FETCH = "import sys, urllib.request as u; print(u.urlopen(sys.argv[1], timeout=5).read().decode())"
TUNNEL = """
import socket, sys
s = socket.create_connection(("127.0.0.1", 3128), timeout=5)
s.sendall(f"CONNECT {sys.argv[1]} HTTP/1.1\\r\\nHost: {sys.argv[1]}\\r\\n\\r\\n".encode())
print(s.recv(4096).decode())
if len(sys.argv) > 2:
    s.sendall(b"GET / HTTP/1.0\\r\\n\\r\\n")
    print(s.recv(4096).decode())
    s.settimeout(20)
    print("cut" if s.recv(1) == b"" else "more")
"""


@dataclass
class Site:
    """A server that answers every request with its name and keeps the connection open."""

    port: int = 0
    requests: list[bytes] = field(default_factory=list)
    keeps_open: bool = False

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            self.requests.append(await reader.readuntil(b"\r\n\r\n"))
            writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\nConnection: close\r\n\r\nwhale")
            await writer.drain()
            if self.keeps_open:
                await reader.read()
        except (OSError, asyncio.IncompleteReadError):
            pass
        finally:
            writer.close()


@pytest.fixture
async def site() -> AsyncIterator[Site]:
    made = Site()
    server = await asyncio.start_server(made.serve, ADDRESS, 0)
    made.port = server.sockets[0].getsockname()[1]
    other = await asyncio.start_server(made.serve, "127.0.0.1", made.port)
    yield made
    server.close()
    other.close()


async def fetch(box: Sandbox, url: str) -> str:
    result = await box.run(["/usr/bin/python3", "-c", FETCH, url], timeout_s=15)
    return result.text + result.stderr.decode()


async def tunnel(box: Sandbox, target: str, *more: str) -> str:
    result = await box.run(["/usr/bin/python3", "-c", TUNNEL, target, *more], timeout_s=30)
    return result.text + result.stderr.decode()


async def test_a_listed_host_answers_and_every_other_is_refused(host: Home, site: Site) -> None:
    url = f"http://{ADDRESS}:{site.port}/path?q=1"
    async with await Sandbox.create(network=Allowlist([f"{ADDRESS}:{site.port}"])) as box:
        assert "whale" in await fetch(box, url)
        assert site.requests[0].startswith(b"GET /path?q=1 HTTP/1.1\r\n")
        assert f"Host: {ADDRESS}:{site.port}\r\n".encode() in site.requests[0]
        assert " 200 " in await tunnel(box, f"{ADDRESS}:{site.port}")
        for target in (f"{ADDRESS}:{site.port + 1}", f"127.0.0.3:{site.port}", "example.org:443"):
            assert " 403 " in await tunnel(box, target)
            assert "403" in await fetch(box, f"http://{target}/")
    opened = await asyncio.to_thread(urllib.request.urlopen, url)
    assert opened.read() == b"whale", "the positive control: the host reaches it"


async def test_without_a_network_there_is_no_proxy_and_no_way_out(host: Home, site: Site) -> None:
    async with await Sandbox.create() as box:
        assert "refused" in await fetch(box, f"http://{ADDRESS}:{site.port}/")
        assert "refused" in await tunnel(box, f"{ADDRESS}:{site.port}")
        assert "proxy" not in (await box.run(["env"])).text.lower()
    assert site.requests == []


async def test_a_list_is_the_only_way_out_whatever_a_program_does(host: Home, site: Site) -> None:
    """No route for other sockets, no names resolved in the box, so none to leak data by."""
    attempts = (
        "socket.create_connection(('192.0.2.1', 80), 2)",
        "socket.getaddrinfo('secret.example.org', 80)",
        "socket.socket(socket.AF_INET, socket.SOCK_DGRAM).sendto(b'x', ('192.0.2.1', 53))",
    )
    async with await Sandbox.create(network=Allowlist([f"{ADDRESS}:{site.port}"])) as box:
        for attempt in attempts:
            result = await box.run(["/usr/bin/python3", "-c", f"import socket; {attempt}"])
            assert result.exit_code == 1, attempt
            assert b"unreachable" in result.stderr or b"resolution" in result.stderr


async def test_public_does_not_reach_the_host_and_private_networks(host: Home, site: Site) -> None:
    async with await Sandbox.create(network="public") as box:
        for name in ("localhost", ADDRESS, "127.0.0.1", "169.254.169.254", "[::1]"):
            assert " 403 " in await tunnel(box, f"{name}:{site.port}"), name
    assert site.requests == []


async def test_a_listed_name_must_not_lead_to_a_private_address(host: Home, site: Site) -> None:
    """Whoever owns the name's records could point them at the host; only its own name may."""
    listed = [f"{name}:{site.port}" for name in ("localhost", "localhost.localdomain")]
    async with await Sandbox.create(network=Allowlist(listed)) as box:
        assert " 200 " in await tunnel(box, listed[0])
        assert " 20" not in await tunnel(box, listed[1])


async def test_switching_the_policy_cuts_old_connections_and_is_logged(
    host: Home, site: Site
) -> None:
    site.keeps_open = True
    target = f"{ADDRESS}:{site.port}"
    async with await Sandbox.create() as box:
        await box.set_network(Allowlist([target]))
        old = asyncio.create_task(tunnel(box, target, "get"))
        while not site.requests:
            await asyncio.sleep(0.05)
        await asyncio.sleep(0.3)
        assert not old.done()
        await box.set_network("none")
        assert "cut" in await asyncio.wait_for(old, 15)
        assert " 403 " in await tunnel(box, target)
        await box.set_network(Allowlist([target]))
        assert " 200 " in await tunnel(box, target)
        policies = [r.payload["network"] for r in read(box.trajectory) if r.kind is Kind.NET_POLICY]
        assert policies == [[target], "none", [target]]


async def test_the_policy_outlives_the_edge(host: Home, site: Site) -> None:
    target = f"{ADDRESS}:{site.port}"
    async with await Sandbox.create(network=Allowlist([target])) as box:
        await box.set_network("none")
        kill_edge(host.root)
        assert " 200 " not in await tunnel(box, target)
        await box.set_network(Allowlist([target]))
        kill_edge(host.root)
        assert " 200 " in await tunnel(box, target)


async def test_nonsense_is_answered_and_the_proxy_goes_on(host: Home, site: Site) -> None:
    nonsense = (
        "import socket, sys\n"
        "s = socket.create_connection(('127.0.0.1', 3128), 5)\n"
        "s.sendall(bytes.fromhex(sys.argv[1])); print(s.recv(99))"
    )
    target = f"{ADDRESS}:{site.port}"
    async with await Sandbox.create(network=Allowlist([target])) as box:
        for request in (
            b"hello\r\n\r\n",
            b"GET / HTTP/1.1\r\n\r\n",
            b"x" * 20_000,
            b"CONNECT : x\r\n\r\n",
        ):
            done = await box.run(["/usr/bin/python3", "-c", nonsense, request.hex()])
            assert b"HTTP/1.1 4" in done.stdout, request[:20]
        assert " 200 " in await tunnel(box, target)


async def test_networks_are_typed(host: Home) -> None:
    with pytest.raises(UsageError, match="unknown network"):
        await Sandbox.create(network="wifi")
    with pytest.raises(UsageError, match="name:port"):
        Allowlist(["example.org"])


def test_a_list_names_hosts_and_all_below_a_name() -> None:
    allowed = Allowlist(["Example.org:443", "*.pypi.org:443", "[2001:db8::1]:80"])
    assert allowed.allows("example.ORG.", 443)
    assert allowed.allows("files.pypi.org", 443)
    assert allowed.allows("2001:db8::1", 80)
    for host, port in (
        ("example.org", 80),
        ("a.example.org", 443),
        ("pypi.org", 443),
        ("evilpypi.org", 443),
        ("example.org.evil.com", 443),
    ):
        assert not allowed.allows(host, port)


@pytest.mark.parametrize(
    "address",
    [
        "127.0.0.1",
        "10.1.2.3",
        "169.254.169.254",
        "::1",
        "::ffff:10.0.0.1",
        "fe80::1%eth0",
        "0.0.0.0",
    ],
)
def test_addresses_of_this_host_and_private_networks_are_not_public(address: str) -> None:
    assert not is_public(address)
    assert is_public("8.8.8.8")
    assert is_public("2606:4700::1111")
