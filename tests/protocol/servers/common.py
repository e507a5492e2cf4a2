"""What the scripts of this folder share; each drives our plugin by one server's own classes."""

import json
import sys
import types
from pathlib import Path
from typing import Any

sys.path.insert(0, sys.argv[1])
sys.path.insert(1, str(Path(__file__).parents[3] / "benchmarks"))

SCHEMA = {"type": "object", "properties": {"a": {"type": "string"}, "n": {"type": "integer"}}}
CALL = (
    "\n\n<｜DSML｜tool_calls>\n"
    '<｜DSML｜invoke name="f">\n'
    '<｜DSML｜parameter name="a" string="true">x "y"</｜DSML｜parameter>\n'
    '<｜DSML｜parameter name="n" string="true">5</｜DSML｜parameter>\n'
    "</｜DSML｜invoke>\n"
    '<｜DSML｜invoke name="g">\n</｜DSML｜invoke>\n'
    "</｜DSML｜tool_calls>"
)
HELD = "1 <"
"""Ends with what may be the beginning of a tag."""
FUNCTION = types.SimpleNamespace(name="f", parameters=SCHEMA, strict=False)
TOOLS = [types.SimpleNamespace(type="function", function=FUNCTION)]


class Streamed:
    """Collects the deltas of calls."""

    def __init__(self) -> None:
        self._calls: dict[int, list[str]] = {}

    def add(self, index: int, name: str | None, arguments: str | None) -> None:
        known = self._calls.setdefault(index, ["", ""])
        known[0] += name or ""
        known[1] += arguments or ""

    @property
    def calls(self) -> list[list[Any]]:
        return [[name, json.loads(arguments)] for name, arguments in self._calls.values()]


def report(**found: Any) -> None:
    print(json.dumps(found))
