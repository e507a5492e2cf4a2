"""Stores of their own for the tests of images."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from baleen.sandbox.home import Home
from baleen.sandbox.images.store import Store

needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="mounts an image on the host: needs root")


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Home:
    """A home without an edge."""
    made = Home(tmp_path / "home")
    made.prepare()
    monkeypatch.setenv("BALEEN_HOME", str(made.root))
    return made


@pytest.fixture
def store(home: Home) -> Store:
    return Store(home.images)


@contextmanager
def mounted(image: Path, at: Path) -> Iterator[Path]:
    """The image as the kernel shows it."""
    at.mkdir(exist_ok=True)
    subprocess.run(["mount", "-t", "erofs", "-o", "ro,loop", image, at], check=True)
    try:
        yield at
    finally:
        subprocess.run(["umount", at], check=True)
