"""What the scripts of this folder share; each drives our plugin by one server's own classes."""

import importlib.util
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


def real_structural_tag() -> Any:
    """xgrammar's own class; only the library behind it, which compiles, stays a stand-in.

    It is what both servers take a grammar as, so a tag that it refuses would never reach them.
    """
    from protocol_wheels import folder_of

    path = folder_of("xgrammar") / "xgrammar" / "structural_tag.py"
    spec = importlib.util.spec_from_file_location("structural_tag", path)
    assert spec is not None
    assert spec.loader is not None
    module = sys.modules["structural_tag"] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)  # pydantic looks the module up by its name
    importlib.import_module("xgrammar").StructuralTag = module.StructuralTag
    return module.StructuralTag


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
