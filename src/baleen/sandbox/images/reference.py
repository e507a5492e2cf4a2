"""Names of images in registries: ``host/repository:tag@digest``."""

from __future__ import annotations

import re
from dataclasses import dataclass

from .errors import ImageError

DOCKER_HUB = "registry-1.docker.io"
_HUB_NAMES = ("docker.io", "index.docker.io", DOCKER_HUB)
_PART = r"[a-z0-9]+(?:(?:\.|_|__|-+)[a-z0-9]+)*"
_REPOSITORY = re.compile(rf"{_PART}(?:/{_PART})*")
_HOST = re.compile(r"(?:[A-Za-z0-9][A-Za-z0-9.-]*|\[[0-9a-fA-F:]+\])(?::\d+)?")
_TAG = re.compile(r"[\w][\w.-]{0,127}")
_DIGEST = re.compile(r"sha256:[0-9a-f]{64}")


@dataclass(frozen=True)
class Reference:
    """Where an image is: a registry's host, a repository there, and a tag or digest."""

    host: str
    repository: str
    tag: str = "latest"
    digest: str | None = None

    @property
    def wanted(self) -> str:
        """What manifests are asked by: the digest if there is one."""
        return self.digest or self.tag

    @property
    def is_local(self) -> bool:
        """Whether the registry is this machine's, which speaks plain HTTP by custom."""
        name = self.host.partition(":")[0]
        return name == "localhost" or name.startswith("127.") or self.host.startswith("[::1]")

    @classmethod
    def parse(cls, text: str) -> Reference:
        """Parses a name as Docker does: no host means Docker Hub, no tag means latest.

        Raises:
            ImageError: it is not one.
        """
        rest, _, digest = text.partition("@")
        first, slash, path = rest.partition("/")
        if slash and ("." in first or ":" in first or first == "localhost"):
            host = first
        else:
            host, path = "docker.io", rest
        repository, colon, tag = path.partition(":")
        if host in _HUB_NAMES:
            host = DOCKER_HUB
            repository = repository if "/" in repository else f"library/{repository}"
        fits = (
            _HOST.fullmatch(host)
            and _REPOSITORY.fullmatch(repository)
            and (not colon or _TAG.fullmatch(tag))
        )
        if not fits or (digest and not _DIGEST.fullmatch(digest)):
            raise ImageError(f"{text!r} is not an image's name", remedy="[HOST/]NAME[:TAG]")
        return cls(host, repository, tag or "latest", digest or None)

    def __str__(self) -> str:
        digest = f"@{self.digest}" if self.digest else ""
        return f"{self.host}/{self.repository}:{self.tag}{digest}"
