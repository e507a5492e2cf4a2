"""Who a registry takes us for: Docker's ``config.json`` and its credential helpers."""

from __future__ import annotations

import base64
import json
import os
import subprocess
from pathlib import Path
from typing import Any, NamedTuple

from .errors import PullError
from .reference import DOCKER_HUB

_HUB_KEY = "https://index.docker.io/v1/"
HELPER_TIMEOUT_S = 20


class Login(NamedTuple):
    """A user name and password (or token)."""

    user: str
    password: str


def find_login(host: str) -> Login | None:
    """The login for a registry, None where there is none.

    Raises:
        PullError: the file or a helper cannot be read.
    """
    folder = Path(os.environ.get("DOCKER_CONFIG") or Path.home() / ".docker")
    path = folder / "config.json"
    try:
        config = json.loads(path.read_text())
    except FileNotFoundError:
        return None
    except (OSError, ValueError) as error:
        raise PullError(f"{path} cannot be read: {error}") from None
    keys = [_HUB_KEY, "docker.io", host] if host == DOCKER_HUB else [host, f"https://{host}"]
    for key in keys:
        helper = (config.get("credHelpers") or {}).get(key) or config.get("credsStore")
        found = _of_entry((config.get("auths") or {}).get(key), path)
        if found is None and helper is not None:
            found = _of_helper(helper, key)
        if found is not None:
            return found
    return None


def _of_entry(entry: Any, path: Path) -> Login | None:
    if not entry:
        return None
    if entry.get("auth"):
        try:
            text = base64.b64decode(entry["auth"]).decode()
        except ValueError as error:
            raise PullError(f"an `auth` in {path} is not base64: {error}") from None
        user, _, password = text.partition(":")
        return Login(user, password)
    if entry.get("username"):
        return Login(entry["username"], entry.get("password", ""))
    return None


def _of_helper(helper: str, key: str) -> Login | None:
    program = f"docker-credential-{helper}"
    try:
        done = subprocess.run(
            [program, "get"],
            input=key,
            capture_output=True,
            text=True,
            timeout=HELPER_TIMEOUT_S,
            check=False,
        )
    except (OSError, subprocess.SubprocessError) as error:
        raise PullError(f"{program} of Docker's config.json: {error}") from None
    if done.returncode != 0:
        return None  # a helper says so when it has nothing
    found = json.loads(done.stdout)
    return Login(found["Username"], found["Secret"])
