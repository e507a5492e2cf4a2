"""Gives the episodes of these tests an edge of their own, which ends with them."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[1] / "agent" / "support"))

from edge_home import edge_home


@pytest.fixture(scope="package", autouse=True)
def home(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Every box that a rollout makes is gone when it ends; the fixture checks it."""
    with edge_home(tmp_path_factory.mktemp("home")) as root:
        yield root
