"""What a box may reach: a proxy of its own, in the edge, and no other way out.

A box has no route to anywhere. Process 1 opens a port on the box's loopback and hands every
connection to the edge, where this proxy reads ``CONNECT host:port`` or ``GET http://...``, asks the
policy, resolves the name on the host, and relays. So a box cannot resolve names by itself, send
anything but TCP to what the policy names, or reach the host's own and private addresses, unless
the list names such an address or ``localhost`` itself. Programs find the proxy by the usual
variables.
"""

from __future__ import annotations

import asyncio
import contextlib
import ipaddress
import socket
from collections.abc import Awaitable, Callable
from urllib.parse import urlsplit

from baleen.errors import SandboxError, UsageError

from .agentlink import AgentLink
from .spec import Allowlist

PORT = 3128
"""Where the box's programs find the proxy, on their loopback."""

MAX_HEAD_BYTES = 16 << 10
CONNECT_TIMEOUT_S = 20.0
CHUNK_BYTES = 64 << 10

Network = str | Allowlist


def proxy_environment() -> dict[str, str]:
    """The variables by which common programs find the proxy."""
    url = f"http://127.0.0.1:{PORT}"
    names = ("http_proxy", "https_proxy", "HTTP_PROXY", "HTTPS_PROXY")
    here = "localhost,127.0.0.1,::1"
    return {**dict.fromkeys(names, url), "no_proxy": here, "NO_PROXY": here}


def network_to_wire(network: Network) -> str | list[str]:
    """Checks a network mode and makes it plain data.

    Raises:
        UsageError: it is none of "none", "public" and an Allowlist.
    """
    if isinstance(network, Allowlist):
        return list(network.hosts)
    if network not in ("none", "public"):
        raise UsageError(f"unknown network {network!r}", remedy='"none", "public" or an Allowlist')
    return network


def network_from_wire(data: str | list[str]) -> Network:
    return data if isinstance(data, str) else Allowlist(data)


def is_public(address: str) -> bool:
    """Whether an address is of the internet at large: not this host's, not a private network's."""
    parsed = ipaddress.ip_address(address.partition("%")[0])
    if isinstance(parsed, ipaddress.IPv6Address) and parsed.ipv4_mapped is not None:
        parsed = parsed.ipv4_mapped
    return parsed.is_global and not parsed.is_multicast


class _Refused(Exception):
    """The answer to a request that is not served."""

    def __init__(self, status: str, text: str) -> None:
        super().__init__(text)
        self.answer = (
            f"HTTP/1.1 {status}\r\nContent-Type: text/plain\r\nConnection: close\r\n"
            f"Content-Length: {len(text) + 1}\r\n\r\n{text}\n"
        ).encode()


class Egress:
    """The proxy of one box."""

    def __init__(self, link: AgentLink, network: Network) -> None:
        self._link = link
        self.network = network
        self._tasks: set[asyncio.Task[None]] = set()

    async def start(self) -> None:
        """Opens the port in the box.

        Raises:
            BoxFileError: something in the box has it.
            BoxGoneError: the box has ended.
        """
        await self._link.listen(PORT, self._accepted)

    def switch(self, network: Network) -> None:
        """Changes the policy and cuts every connection that was made under the old one."""
        self.network = network
        self.cut()

    def cut(self) -> None:
        for task in self._tasks:
            task.cancel()

    def _accepted(self, op: int) -> None:
        connection = _Connection(self._link, op)
        task = asyncio.create_task(self._serve(connection))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _serve(self, connection: _Connection) -> None:
        try:
            await self._proxy(connection)
        except _Refused as refused:
            connection.send(refused.answer)
            await asyncio.sleep(0.1)  # it may read the answer before its connection goes
        except (OSError, SandboxError, asyncio.IncompleteReadError):
            pass
        finally:
            connection.close()

    async def _proxy(self, connection: _Connection) -> None:
        head = await connection.read_head()
        request = head.split(b"\r\n", 1)[0].decode("latin-1").split(" ")
        if len(request) != 3:
            raise _Refused("400 Bad Request", "this is a proxy: ask with CONNECT or a whole URL")
        method, target, _ = request
        host, port = _endpoint(method, target)
        reader, writer = await self._reach(host, port)
        try:
            if method == "CONNECT":
                connection.send(b"HTTP/1.1 200 Connection established\r\n\r\n")
            else:
                writer.write(_forwarded(head, method, target))
            await connection.relay(reader, writer)
        finally:
            writer.close()

    async def _reach(
        self, host: str, port: int
    ) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        """Connects where the policy allows it; what is resolved is what is connected to."""
        network = self.network
        if network == "none" or (isinstance(network, Allowlist) and not network.allows(host, port)):
            raise _Refused("403 Forbidden", f"{host}:{port} is not allowed by this box's network")
        loop = asyncio.get_running_loop()
        try:
            found = await loop.getaddrinfo(host, port, type=socket.SOCK_STREAM)
        except OSError:
            raise _Refused("502 Bad Gateway", f"{host} has no address") from None
        names_itself = isinstance(network, Allowlist) and _is_local_name(host)
        addresses = [str(entry[4][0]) for entry in found]
        usable = [a for a in addresses if names_itself or is_public(a)]
        if not usable:
            raise _Refused("403 Forbidden", f"{host} leads to the private address {addresses[0]}")
        for address in usable:
            with contextlib.suppress(OSError, TimeoutError):
                async with asyncio.timeout(CONNECT_TIMEOUT_S):
                    return await asyncio.open_connection(address, port)
        raise _Refused("502 Bad Gateway", f"{host}:{port} does not answer")


def _is_local_name(host: str) -> bool:
    """Whether a list that has this entry can only mean the address itself."""
    with contextlib.suppress(ValueError):
        ipaddress.ip_address(host)
        return True
    return host == "localhost"


def _endpoint(method: str, target: str) -> tuple[str, int]:
    try:
        parts = urlsplit(f"//{target}" if method == "CONNECT" else target)
        if parts.hostname and (method == "CONNECT" or parts.scheme == "http"):
            return parts.hostname, parts.port or 80
    except ValueError:
        pass
    raise _Refused("400 Bad Request", f"cannot serve {target!r}: CONNECT host:port or http://")


def _forwarded(head: bytes, method: str, target: str) -> bytes:
    """The request as the origin expects it; one request per connection, so no other slips by."""
    parts = urlsplit(target)
    path = (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
    host = parts.netloc.rpartition("@")[2]
    lines = [f"{method} {path} HTTP/1.1".encode(), f"Host: {host}".encode()]
    top, _, rest = head.partition(b"\r\n\r\n")
    for line in top.split(b"\r\n")[1:]:
        name = line.split(b":", 1)[0].strip().lower()
        if name not in (b"host", b"connection", b"proxy-connection", b"proxy-authorization"):
            lines.append(line)
    return b"\r\n".join([*lines, b"Connection: close", b"", b""]) + rest


class _Connection:
    """One connection of a program in the box."""

    def __init__(self, link: AgentLink, op: int) -> None:
        self._link = link
        self._op = op
        self._early = b""
        """What came right behind the head of a CONNECT."""
        self._reader = asyncio.StreamReader(limit=CHUNK_BYTES)
        link.take(op, self._receive, self._ended)

    def _receive(self, data: bytes) -> None:
        self._reader.feed_data(data)

    def _ended(self) -> None:
        self._reader.feed_eof()

    async def read_head(self) -> bytes:
        """The head of the request, with what came right behind it."""
        head = b""
        while b"\r\n\r\n" not in head:
            more = await self._reader.read(MAX_HEAD_BYTES)
            if not more:
                raise asyncio.IncompleteReadError(head, None)
            head += more
            if len(head) > MAX_HEAD_BYTES:
                raise _Refused("431 Request Header Fields Too Large", "the head is too long")
        if head.startswith(b"CONNECT "):
            head, _, self._early = head.partition(b"\r\n\r\n")
            head += b"\r\n\r\n"
        return head

    def send(self, data: bytes) -> None:
        self._link.send_input(self._op, data, eof=False)

    async def relay(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Passes bytes both ways until either side ends."""
        if self._early:
            writer.write(self._early)
        ways = [
            asyncio.create_task(self._pass(self._reader, writer.write, writer.drain)),
            asyncio.create_task(self._pass(reader, self.send, self._link.drained)),
        ]
        try:
            await asyncio.wait(ways, return_when=asyncio.FIRST_COMPLETED)
            if ways[0].done() and not ways[1].done():
                with contextlib.suppress(TimeoutError):
                    await asyncio.wait_for(asyncio.shield(ways[1]), 1)
        finally:
            for way in ways:
                way.cancel()
            await asyncio.gather(*ways, return_exceptions=True)

    @staticmethod
    async def _pass(
        reader: asyncio.StreamReader,
        write: Callable[[bytes], None],
        drain: Callable[[], Awaitable[None]],
    ) -> None:
        while data := await reader.read(CHUNK_BYTES):
            write(data)
            await drain()

    def close(self) -> None:
        self._link.disconnect(self._op)
        self._link.acknowledge(self._op)
