"""Shares the hand-made endpoints and edges of the agent's tests."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[1] / "agent" / "support"))

from edge_home import edge_home


@pytest.fixture(scope="session")
def home(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """An edge for all runs of these tests."""
    with edge_home(tmp_path_factory.mktemp("home")) as root:
        yield root
