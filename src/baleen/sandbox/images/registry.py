"""A client of registries: the distribution API, version 2, reading only.

Everything is verified by digest. A transfer that breaks goes on where it stopped: in this call with
growing pauses, in the next call from the partial file. Tokens are fetched when the registry asks.
"""

from __future__ import annotations

import base64
import fcntl
import hashlib
import json
import os
import random
import re
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from .credentials import Login, find_login
from .errors import PullError
from .oci import INDEX_TYPES, MANIFEST_TYPES, MAX_JSON_BYTES, choose, plain_digest
from .reference import Reference

if TYPE_CHECKING:
    import httpx

T = TypeVar("T")

ATTEMPTS = 6
"""Tries in a row without a byte of progress."""

FIRST_PAUSE_S = 0.2
MAX_PAUSE_S = 10.0
TIMEOUT_S = 30.0
_CHALLENGE = re.compile(r'(\w+)="([^"]*)"')
_AGAIN = {408, 425, 429, 500, 502, 503, 504}


class Registry:
    """One repository of one registry."""

    def __init__(self, reference: Reference, *, insecure: bool = False) -> None:
        import httpx

        self._reference = reference
        scheme = "http" if insecure or reference.is_local else "https"
        self._base = f"{scheme}://{reference.host}/v2/{reference.repository}"
        self._http = httpx.Client(follow_redirects=True, timeout=TIMEOUT_S)
        self._authorization: str | None = None

    def close(self) -> None:
        self._http.close()

    def manifest(self, architecture: str) -> Mapping[str, Any]:
        """The manifest of the image for an architecture; an index is followed.

        Raises:
            PullError: refused, unreachable, or of another digest than asked for.
            ImageError: the image is not offered for the architecture.
        """
        data: Mapping[str, Any] = self._manifest(self._reference.wanted)
        while "manifests" in data:
            data = self._manifest(choose(data, architecture)["digest"])
        if data.get("schemaVersion") != 2 or "layers" not in data:
            raise PullError(
                f"{self._reference} has a manifest of an old kind", remedy="push the image again"
            )
        return data

    def _manifest(self, wanted: str) -> Any:
        accept = ", ".join((*MANIFEST_TYPES, *INDEX_TYPES))
        body = self._whole(f"{self._base}/manifests/{wanted}", accept)
        if ":" in wanted and hashlib.sha256(body).hexdigest() != plain_digest(wanted):
            raise PullError(f"{self._reference.host} sent another manifest than {wanted}")
        return _json(body, wanted)

    def config(self, descriptor: Mapping[str, Any]) -> Any:
        """The config blob of a manifest."""
        digest = descriptor["digest"]
        body = self._whole(f"{self._base}/blobs/{digest}", "*/*")
        if hashlib.sha256(body).hexdigest() != plain_digest(digest):
            raise PullError(f"{self._reference.host} sent another config than {digest}")
        return _json(body, digest)

    def _whole(self, url: str, accept: str) -> bytes:
        def work() -> bytes:
            with self._asked(url, {"Accept": accept}) as answer:
                body = b""
                for part in answer.iter_bytes():
                    body += part
                    if len(body) > MAX_JSON_BYTES:
                        raise PullError(f"{url} is longer than {MAX_JSON_BYTES} bytes")
                return body

        return self._patiently(work, lambda: 0)

    def download(self, digest: str, path: Path, size: int, progress: Callable[[int], None]) -> None:
        """Downloads a blob to a file, going on after what is there; verified at the end.

        Raises:
            PullError: refused, gone for good, or of another digest, twice.
        """
        wanted = plain_digest(digest)
        with path.open("ab") as file:
            fcntl.flock(file, fcntl.LOCK_EX)  # another process may pull the same
            os.utime(file.fileno())  # in use: garbage collection leaves it alone
            for _ in range(2):
                self._fetch(digest, file.fileno(), size, progress)
                with path.open("rb") as whole:
                    if hashlib.file_digest(whole, "sha256").hexdigest() == wanted:
                        return
                os.ftruncate(file.fileno(), 0)
        raise PullError(f"{self._reference.host} sent other bytes than {digest}, twice")

    def _fetch(self, digest: str, fd: int, size: int, progress: Callable[[int], None]) -> None:
        def done() -> int:
            return os.fstat(fd).st_size

        def work() -> None:
            start = done()
            if start > size:
                os.ftruncate(fd, 0)
                start = 0
            if start == size:
                return
            headers = {"Range": f"bytes={start}-"} if start else {}
            with self._asked(f"{self._base}/blobs/{digest}", headers) as answer:
                if start and answer.status_code != 206:
                    os.ftruncate(fd, 0)  # it cannot continue: from the beginning
                for part in answer.iter_raw():  # as it comes: what is here is kept
                    os.write(fd, part)
                    progress(done())
                    if done() > size:
                        raise PullError(f"{digest} is longer than the {size} bytes announced")
            if done() < size:
                raise _Broken(f"{digest} ended after {done()} of {size} bytes")

        self._patiently(work, done)

    def _patiently(self, work: Callable[[], T], progress: Callable[[], int]) -> T:
        """Works, again after a pause where the network failed, as long as there is progress."""
        import httpx

        failures, reached = 0, progress()
        while True:
            try:
                return work()
            except (httpx.TransportError, _Broken) as error:
                if progress() > reached:
                    failures, reached = 0, progress()
                failures += 1
                if failures >= ATTEMPTS:
                    text = f"{self._reference.host} failed {failures} times: {error or type(error)}"
                    raise PullError(text, remedy="run it again; it goes on there") from error
                pause_s = min(MAX_PAUSE_S, FIRST_PAUSE_S * 2 ** (failures - 1))
                after_s = error.after_s if isinstance(error, _Broken) else 0.0
                time.sleep(max(after_s, pause_s * random.uniform(0.5, 1)))

    @contextmanager
    def _asked(self, url: str, headers: Mapping[str, str]) -> Iterator[httpx.Response]:
        """A good answer's stream; a challenge is met once."""
        for attempt in range(2):
            own = {"Authorization": self._authorization} if self._authorization else {}
            with self._http.stream("GET", url, headers={**headers, **own}) as answer:
                if answer.status_code == 401 and attempt == 0:
                    answer.read()
                    self._meet(answer.headers.get_list("www-authenticate"))
                    continue
                self._check(answer)
                yield answer
                return

    def _check(self, answer: httpx.Response) -> None:
        if answer.status_code in (200, 206):
            return
        if answer.status_code in _AGAIN:
            text = answer.headers.get("retry-after", "")
            after_s = min(float(text), MAX_PAUSE_S) if text.isdigit() else 0.0
            raise _Broken(f"{answer.status_code} from {answer.url}", after_s)
        answer.read()
        remedies = {
            401: f"`docker login {self._reference.host}`, or check the name",
            403: "this user may not read it",
            404: "check name and tag",
        }
        raise PullError(
            f"{self._reference}: {answer.status_code} {_detail(answer)}",
            remedy=remedies.get(answer.status_code),
        )

    def _meet(self, challenges: list[str]) -> None:
        """Does what a 401 asks for: basic credentials, or a token from the realm it names."""
        login = find_login(self._reference.host)
        for challenge in challenges:
            kind, _, rest = challenge.partition(" ")
            if kind.lower() == "basic" and login is not None:
                self._authorization = _basic(login)
                return
            if kind.lower() == "bearer":
                self._authorization = f"Bearer {self._token(dict(_CHALLENGE.findall(rest)), login)}"
                return
        raise PullError(
            f"{self._reference.host} wants a login for {self._reference.repository}",
            remedy=f"`docker login {self._reference.host}` notes one in ~/.docker/config.json",
        )

    def _token(self, about: Mapping[str, str], login: Login | None) -> str:
        if "realm" not in about:
            raise PullError(f"{self._reference.host} wants a token and does not say from where")
        scope = about.get("scope") or f"repository:{self._reference.repository}:pull"
        query = {"scope": scope}
        if "service" in about:
            query["service"] = about["service"]
        headers = {"Authorization": _basic(login)} if login is not None else {}
        answer = self._http.get(about["realm"], params=query, headers=headers)
        if answer.status_code in _AGAIN:
            raise _Broken(f"{answer.status_code} from {about['realm']}")
        if answer.status_code != 200:
            raise PullError(
                f"{about['realm']} gives no token: {answer.status_code} {_detail(answer)}",
                remedy=f"`docker login {self._reference.host}`",
            )
        data = answer.json()
        token: str = data.get("token") or data.get("access_token") or ""
        return token


class _Broken(Exception):
    """A transfer failed in a way that may pass."""

    def __init__(self, text: str, after_s: float = 0.0) -> None:
        super().__init__(text)
        self.after_s = after_s


def _basic(login: Login) -> str:
    return "Basic " + base64.b64encode(f"{login.user}:{login.password}".encode()).decode()


def _json(body: bytes, what: str) -> Any:
    try:
        return json.loads(body)
    except ValueError:
        raise PullError(f"{what} is not JSON; is this a registry?") from None


def _detail(answer: httpx.Response) -> str:
    """What a registry says about an error."""
    try:
        return "; ".join(f"{e['code']}: {e['message']}" for e in answer.json()["errors"])
    except (ValueError, KeyError, TypeError):
        return answer.reason_phrase
