"""Tables of the docs that promise tests: what they name exists, and none is left out of them."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

HERE = Path(__file__).parent
DOCS = HERE.parents[1] / "docs"
_ROW = re.compile(r"^\|[^`]+\| `([\w/.]+)::(\w+)` \|$", re.MULTILINE)


def _listed(document: str) -> set[tuple[str, str]]:
    return set(_ROW.findall((DOCS / document).read_text()))


def _functions(file: Path) -> set[str]:
    kinds = (ast.FunctionDef, ast.AsyncFunctionDef)
    return {node.name for node in ast.parse(file.read_text()).body if isinstance(node, kinds)}


@pytest.mark.parametrize(("document", "least"), [("threat-model.md", 60), ("sandbox.md", 15)])
def test_every_row_of_a_table_names_a_test_that_exists(document: str, least: int) -> None:
    listed = _listed(document)
    assert len(listed) >= least
    missing = [f"{file}::{name}" for file, name in listed if name not in _functions(HERE / file)]
    assert missing == []


@pytest.mark.parametrize(
    ("document", "file"),
    [("threat-model.md", "test_misbehaviour.py"), ("sandbox.md", "test_crash_points.py")],
)
def test_every_test_of_a_file_is_in_its_table(document: str, file: str) -> None:
    listed = {name for _, name in _listed(document)}
    made = {name for name in _functions(HERE / file) if name.startswith("test_")}
    assert made - listed == set()
