"""What a block of calls may look like for given tools.

In the order in which the model writes: the block's name; one of the declared tools; its parameters
in any order, each once, each with the attribute that its type demands; a raw string, or JSON of the
parameter's schema; the closer, once nothing required is missing; another invocation, or the end of
the block; then the end of the turn and nothing else.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Final

from baleen.protocol import tokens
from baleen.protocol.errors import ToolSchemaError
from baleen.protocol.grammar.automaton import RAW, TOKEN, Automaton, State, Symbol
from baleen.protocol.grammar.json_rules import JsonRules, literal
from baleen.protocol.markup import dialect_of
from baleen.protocol.revision import Revision
from baleen.protocol.schema import Schema
from baleen.protocol.tool_choice import ToolChoice
from baleen.protocol.tools import Tool

_DSML: Final[Symbol] = (TOKEN, tokens.DSML)
_EOS: Final[Symbol] = (TOKEN, tokens.EOS)
_RAW: Final[Symbol] = (RAW, tokens.DSML, 0)


class CallRules:
    """The grammar of calls to some tools; one object serves any number of sequences."""

    def __init__(
        self,
        tools: Sequence[Tool],
        choice: ToolChoice | None = None,
        revision: str = Revision.R0731,
        *,
        parallel: bool = True,
    ) -> None:
        self.choice = choice or ToolChoice()
        self._schemas = {
            tool.name: Schema(tool.parameters) for tool in tools if self.choice.allows(tool)
        }
        if not self._schemas:
            raise ToolSchemaError("no tool may be called", remedy="declare one, or use no grammar")
        self._dialect = dialect_of(Revision(revision))
        self._parallel = parallel
        self._json = JsonRules()
        self.automaton = Automaton(self)

    @property
    def forced_start(self) -> State:
        """The state in which a turn that has to call leaves its reasoning."""
        return self.automaton.start([literal("\n\n<"), _DSML, ("block",)])

    @property
    def block_start(self) -> State:
        """The state behind the DSML token of a block's opener."""
        return self.automaton.start([("block",)])

    @property
    def invoke_start(self) -> State:
        """The state within a block that the prompt has opened."""
        return self.automaton.start([literal("<"), _DSML, ("invoke",)])

    def expand(self, symbol: Symbol) -> Iterable[Sequence[Symbol]]:
        """The sequences that a symbol stands for."""
        kind = symbol[0]
        words = self._dialect
        if kind == "block":
            return [[literal(f"{words.block}>\n<"), _DSML, ("invoke",)]]
        if kind == "invoke":
            return [
                [literal(f'{words.invoke} name="{name}">\n'), ("parameters", name, frozenset())]
                for name in self._schemas
            ]
        if kind == "parameters":
            return self._parameters(symbol[1], symbol[2])
        if kind == "after invoke":
            return self._after_invoke()
        if kind == "parameter value":
            return self._parameter_value(symbol[1], symbol[2])
        return self._json.expand(symbol)

    def _after_invoke(self) -> list[Sequence[Symbol]]:
        end = [literal("</"), _DSML, literal(f"{self._dialect.block}>"), _EOS]
        return [end, [literal("<"), _DSML, ("invoke",)]] if self._parallel else [end]

    def _parameters(self, tool: str, seen: frozenset[str]) -> list[Sequence[Symbol]]:
        schema = self._schemas[tool]
        words = self._dialect
        node = schema.node if isinstance(schema.node, Mapping) else {}
        found: list[Sequence[Symbol]] = []
        if all(name in seen for name in node.get("required") or ()):
            close = [_DSML, literal(f"{words.invoke}>\n"), ("after invoke",)]
            found.append([literal("</"), *close])
            if not seen:
                found.append([literal("\n</"), *close])
        for name in schema.properties:
            if name not in seen:
                opener = literal(f'{words.parameter} name="{name}" string="')
                closer = literal(f"{words.parameter}>\n")
                rest = ("parameters", tool, seen | {name})
                value = ("parameter value", tool, name)
                found.append([literal("<"), _DSML, opener, value, closer, rest])
        return found

    def _parameter_value(self, tool: str, name: str) -> list[Sequence[Symbol]]:
        schema = self._schemas[tool].property(name)
        found: list[Sequence[Symbol]] = []
        if schema is None or schema.admits_strings():
            found += [[literal('true">'), *text] for text in _texts(schema)]
        if schema is None or not _is_only_string(schema):
            value = self._json.value(schema, strings=False)
            found.append([literal('false">'), value, literal("</"), _DSML])
        return found


def _texts(schema: Schema | None) -> list[Sequence[Symbol]]:
    """A string parameter: one of the listed strings, or any text."""
    node: Any = schema.node if schema is not None else {}
    listed = node.get("enum", [node["const"]] if "const" in node else None)
    if isinstance(listed, Sequence) and not isinstance(listed, str):
        return [[literal(f"{text}</"), _DSML] for text in listed if isinstance(text, str)]
    return [[_RAW]]


def _is_only_string(schema: Schema) -> bool:
    node = schema.node if isinstance(schema.node, Mapping) else {}
    listed = node.get("enum")
    if isinstance(listed, Sequence):
        return all(isinstance(value, str) for value in listed)
    return node.get("type") in ("string", ["string"]) or isinstance(node.get("const"), str)
