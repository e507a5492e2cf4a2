"""A registry on loopback that speaks the distribution API, and misbehaves on request."""

from __future__ import annotations

import base64
import json
import re
import socket
import threading
import urllib.parse
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from .making import Blobs, digest

USER, PASSWORD, TOKEN = "me", "secret:with colon", "t0ken"


class LoopbackRegistry:
    """What the server serves, how it misbehaves, and what it has been asked."""

    def __init__(self) -> None:
        self.blobs: dict[str, bytes] = {}
        self.manifests: dict[str, tuple[str, bytes]] = {}
        self.auth: str | None = None
        """None, "basic" or "bearer"."""
        self.anonymous_tokens = False
        self.cut_after: list[int] = []
        """Each blob request that is answered takes one: so many bytes, then the line is cut."""
        self.failures: list[int] = []
        """Each request takes one status code, 0 for none."""
        self.ranges = True
        self.corrupt: set[str] = set()
        self.redirect: str | None = None
        self.asked: list[tuple[str, str | None, str | None]] = []
        """(path, Range, Authorization) of every request."""
        self.port = 0

    def add(self, name: str, tag: str, *images: Blobs) -> None:
        """Publishes an image, several as an index for several architectures."""
        for image in images:
            self.blobs |= image.blobs
            kind = "application/vnd.oci.image.manifest.v1+json"
            self.manifests[f"{name}:{digest(image.manifest)}"] = (kind, image.manifest)
        chosen = (kind, images[0].manifest)
        if len(images) > 1:
            entries = [image.descriptor for image in images]
            index = json.dumps({"schemaVersion": 2, "manifests": entries}).encode()
            chosen = ("application/vnd.oci.image.index.v1+json", index)
            self.manifests[f"{name}:{digest(index)}"] = chosen
        self.manifests[f"{name}:{tag}"] = chosen

    def name(self, rest: str) -> str:
        return f"127.0.0.1:{self.port}/{rest}"

    def count(self, part: str) -> int:
        return sum(part in path for path, _, _ in self.asked)

    @property
    def most_asked(self) -> Counter[str]:
        return Counter(path for path, _, _ in self.asked)


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    registry: LoopbackRegistry

    def log_message(self, *_: Any) -> None:
        pass

    def _send(self, status: int, body: bytes = b"", **headers: str) -> None:
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def _refuse(self, status: int, code: str, **headers: str) -> None:
        body = json.dumps({"errors": [{"code": code, "message": code.lower()}]}).encode()
        self._send(status, body, **headers)

    def do_GET(self) -> None:
        own = self.registry
        url = urllib.parse.urlsplit(self.path)
        authorization = self.headers.get("Authorization")
        own.asked.append((url.path, self.headers.get("Range"), authorization))
        if own.failures and (status := own.failures.pop(0)):
            self._refuse(status, "BUSY", Retry_After="0")
            return
        if url.path == "/token":
            self._token(urllib.parse.parse_qs(url.query), authorization)
            return
        if not self._allowed(url.path, authorization):
            return
        found = re.fullmatch(r"/v2/(.+)/(manifests|blobs)/([^/]+)", url.path)
        if found is None:
            self._refuse(404, "NAME_UNKNOWN")
        elif found[2] == "manifests":
            self._manifest(f"{found[1]}:{found[3]}")
        else:
            self._blob(found[3])

    def _allowed(self, path: str, authorization: str | None) -> bool:
        own = self.registry
        basic = "Basic " + base64.b64encode(f"{USER}:{PASSWORD}".encode()).decode()
        wanted = {None: authorization, "basic": basic, "bearer": f"Bearer {TOKEN}"}[own.auth]
        if authorization == wanted:
            return True
        name = path.split("/")[2]
        challenge = {
            "basic": 'Basic realm="here"',
            "bearer": f'Bearer realm="http://127.0.0.1:{own.port}/token",'
            f'service="loop",scope="repository:{name}:pull"',
        }[own.auth or "basic"]
        self._refuse(401, "UNAUTHORIZED", WWW_Authenticate=challenge)
        return False

    def _token(self, query: dict[str, list[str]], authorization: str | None) -> None:
        basic = "Basic " + base64.b64encode(f"{USER}:{PASSWORD}".encode()).decode()
        fits = query.get("service") == ["loop"] and query["scope"][0].endswith(":pull")
        if not fits or not (authorization == basic or self.registry.anonymous_tokens):
            self._refuse(403, "DENIED")
            return
        self._send(200, json.dumps({"token": TOKEN}).encode())

    def _manifest(self, key: str) -> None:
        if key not in self.registry.manifests:
            self._refuse(404, "MANIFEST_UNKNOWN")
            return
        kind, body = self.registry.manifests[key]
        if kind not in self.headers.get("Accept", ""):
            self._refuse(406, "NOT_ACCEPTED")
            return
        if "manifest" in self.registry.corrupt:
            body += b" "
        self._send(200, body, Content_Type=kind, Docker_Content_Digest=digest(body))

    def _blob(self, name: str) -> None:
        own = self.registry
        if own.redirect is not None:
            self._send(307, Location=f"{own.redirect}{self.path}")
            return
        if name not in own.blobs:
            self._refuse(404, "BLOB_UNKNOWN")
            return
        data = own.blobs[name]
        if name in own.corrupt:
            data = bytes([data[0] ^ 1]) + data[1:]
        start = 0
        asked = re.fullmatch(r"bytes=(\d+)-", self.headers.get("Range", ""))
        if asked and own.ranges:
            start = int(asked[1])
        self.send_response(206 if start else 200)
        if start:
            self.send_header("Content-Range", f"bytes {start}-{len(data) - 1}/{len(data)}")
        self.send_header("Content-Length", str(len(data) - start))
        self.end_headers()
        rest = data[start:]
        if own.cut_after and len(rest) > own.cut_after[0]:
            self.wfile.write(rest[: own.cut_after.pop(0)])
            self.wfile.flush()
            self.connection.shutdown(socket.SHUT_RDWR)
            self.close_connection = True
            return
        self.wfile.write(rest)


@contextmanager
def serving(registry: LoopbackRegistry) -> Iterator[LoopbackRegistry]:
    """Serves until the end of the block."""
    handler = type("Handler", (_Handler,), {"registry": registry})
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    server.daemon_threads = True
    registry.port = server.server_address[1]
    thread = threading.Thread(target=server.serve_forever, args=(0.02,))
    thread.start()
    try:
        yield registry
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
