"""The threat model's table of attempts names tests that exist, and every test of its two files."""

from __future__ import annotations

import ast
import re
from pathlib import Path

HERE = Path(__file__).parent
MODEL = HERE.parents[1] / "docs" / "threat-model.md"
_ROW = re.compile(r"^\| [^|]+ \| `([\w/.]+)::(\w+)` \|$", re.MULTILINE)


def _listed() -> set[tuple[str, str]]:
    return set(_ROW.findall(MODEL.read_text()))


def _functions(file: Path) -> set[str]:
    kinds = (ast.FunctionDef, ast.AsyncFunctionDef)
    return {node.name for node in ast.parse(file.read_text()).body if isinstance(node, kinds)}


def test_every_attempt_of_the_table_is_made_by_a_test() -> None:
    listed = _listed()
    assert len(listed) > 60
    missing = [f"{file}::{name}" for file, name in listed if name not in _functions(HERE / file)]
    assert missing == []


def test_every_attempt_that_is_made_is_in_the_table() -> None:
    listed = {name for _, name in _listed()}
    made = {name for name in _functions(HERE / "test_misbehaviour.py") if name.startswith("test_")}
    assert made - listed == set()
