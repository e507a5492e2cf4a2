"""What a block of calls may look like for given tools.

In the order in which the model writes: the block's name; one of the declared tools; its parameters
in any order, each once, each with the attribute that its type demands; a raw string, or JSON of the
parameter's schema; the closer, once nothing required is missing; another invocation, or the end of
the block; then the end of the turn and nothing else.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from functools import cached_property
from typing import ClassVar, Final

from baleen.protocol import tokens
from baleen.protocol.errors import ToolSchemaError
from baleen.protocol.grammar.automaton import RAW, TOKEN, Automaton, State, Symbol
from baleen.protocol.grammar.json_rules import JsonRules, literal, other_text, text_symbol
from baleen.protocol.grammar.shapes import kinds_of
from baleen.protocol.markup import dialect_of
from baleen.protocol.revision import Revision
from baleen.protocol.schema import Schema
from baleen.protocol.tool_choice import ToolChoice
from baleen.protocol.tools import Tool

_DSML: Final[Symbol] = (TOKEN, tokens.DSML)
_EOS: Final[Symbol] = (TOKEN, tokens.EOS)
_RAW: Final[Symbol] = (RAW, tokens.DSML, 0)


class CallRules:
    """The grammar of calls to some tools; one object serves any number of sequences.

    ``parallel`` False ends the block after one call. ``any_order`` False holds parameters and
    members to the order of their declaration.

    Raises:
        ToolSchemaError: there is no tool to call, or one that no call could conform to.
    """

    def __init__(
        self,
        tools: Sequence[Tool],
        choice: ToolChoice | None = None,
        revision: str = Revision.R0731,
        *,
        parallel: bool = True,
        any_order: bool = True,
    ) -> None:
        self._given = (tools, choice, revision)
        self.choice = choice or ToolChoice()
        self.parallel = parallel
        self.dialect = dialect_of(Revision(revision))
        self.json = JsonRules(any_order=any_order)
        self._tools = {
            tool.name: self.json.number(Schema(tool.parameters))
            for tool in tools
            if self.choice.allows(tool)
        }
        if not self._tools:
            raise ToolSchemaError("no tool may be called", remedy="declare one, or use no grammar")
        for name in self._tools:
            self._check(name)
        self.automaton = Automaton(self)

    def _check(self, name: str) -> None:
        if '"' in name:
            raise ToolSchemaError(f"a call cannot name the tool {name!r}: names hold no quotes")
        shapes = list(self._shapes_of(name))
        if not shapes or not self.json.admits(self.json.schema(self._tools[name])):
            raise ToolSchemaError(
                f"no arguments conform to the parameters of tool {name!r}",
                remedy="its schema must admit an object",
            )
        for place in shapes:
            for key in self.json.members(place).required:
                if '"' in key:
                    raise ToolSchemaError(f"a call to {name!r} cannot name its parameter {key!r}")

    def _shapes_of(self, tool: str) -> Iterator[int]:
        for place in self.json.shapes(self._tools[tool]):
            if "object" in kinds_of(self.json.shape(place)):
                yield place

    @cached_property
    def unenforced(self) -> tuple[str, ...]:
        """What the tools' schemas demand and this grammar does not follow, as ``path: keyword``.

        Whoever relies on one of these has to validate the arguments.
        """
        known: set[int] = set()
        found = [f"{t}.{w}" for t in self._tools for w in self._unenforced(t, known)]
        return tuple(dict.fromkeys(found))

    def _unenforced(self, tool: str, known: set[int]) -> Iterator[str]:
        yield from self.json.unenforced(self._tools[tool], "parameters", known)
        for place in self._shapes_of(tool):
            if self.json.listed(place) is not None:
                yield "parameters: enum"
            for name in self.json.members(place).named:
                if '"' in name:
                    yield f"parameters.{name}: a name with quotes is left out"

    def in_declared_order(self) -> CallRules:
        """The same rules, parameters and members only in the order of their declaration."""
        return CallRules(*self._given, parallel=self.parallel, any_order=False)

    # --- where a sequence may begin ------------------------------------------------------------

    forced_symbols: ClassVar[Sequence[Symbol]] = (literal("\n\n<"), _DSML, ("block",))
    """What follows the reasoning of a turn that has to call."""
    invoke_symbols: ClassVar[Sequence[Symbol]] = (literal("<"), _DSML, ("invoke",))
    """What follows the opener of a block."""

    @property
    def forces(self) -> bool:
        """Whether a turn has to call."""
        return self.choice.forces

    @property
    def forced_start(self) -> State:
        """The state in which a turn that has to call leaves its reasoning."""
        return self.automaton.start(self.forced_symbols)

    @property
    def block_start(self) -> State:
        """The state behind the DSML token of a block's opener."""
        return self.automaton.start([("block",)])

    @property
    def invoke_start(self) -> State:
        """The state within a block that the prompt has opened."""
        return self.automaton.start(self.invoke_symbols)

    # --- what symbols stand for ----------------------------------------------------------------

    def expand(self, symbol: Symbol) -> Iterable[Sequence[Symbol]]:
        """The sequences that a symbol stands for."""
        kind = symbol[0]
        words = self.dialect
        if kind == "block":
            return [[literal(f"{words.block}>\n<"), _DSML, ("invoke",)]]
        if kind == "invoke":
            return [
                [
                    literal(f'{words.invoke} name="{name}">\n'),
                    ("parameters", place, frozenset(), 0),
                ]
                for name in self._tools
                for place in self._shapes_of(name)
            ]
        if kind == "parameters":
            return self._parameters(*symbol[1:])
        if kind == "after invoke":
            return self._after_invoke()
        if kind == "parameter value":
            return self._parameter_value(symbol[1])
        if kind == "other name":
            return other_text("other name", symbol[1], '"')
        return self.json.expand(symbol)

    def _after_invoke(self) -> list[Sequence[Symbol]]:
        end = [literal("</"), _DSML, literal(f"{self.dialect.block}>"), _EOS]
        return [end, [literal("<"), _DSML, ("invoke",)]] if self.parallel else [end]

    def _parameters(self, place: int, seen: frozenset[str], others: int) -> list[Sequence[Symbol]]:
        members, words = self.json.members(place), self.dialect
        found: list[Sequence[Symbol]] = []
        if members.may_end(seen, others):
            close = [_DSML, literal(f"{words.invoke}>\n"), ("after invoke",)]
            found.append([literal("</"), *close])
            if not (seen or others):
                found.append([literal("\n</"), *close])
        opener = [literal("<"), _DSML, literal(f'{words.parameter} name="')]
        closer = literal(f"{words.parameter}>\n")
        for name, schema, now_seen in self.json.next_named(place, seen, others):
            if '"' not in name:
                value = ("parameter value", self.json.number(schema))
                rest = ("parameters", place, now_seen, others)
                found.append([*opener, literal(f'{name}" string="'), value, closer, rest])
        if self.json.is_open(members) and members.room_for("", seen, others):
            name_symbol = ("other name", frozenset(members.named))
            value = ("parameter value", self.json.number(members.others))
            rest = ("parameters", place, seen, members.one_more(others))
            attribute = literal(' string="')
            found.append([*opener, name_symbol, attribute, value, closer, rest])
        return found

    def _parameter_value(self, number: int) -> list[Sequence[Symbol]]:
        """A string as it is, anything else as JSON; the ``</`` and the token behind it included."""
        found: list[Sequence[Symbol]] = [[literal('true">'), *text] for text in self._texts(number)]
        if any(self._admits_json(place) for place in self.json.shapes(number)):
            found.append([literal('false">'), ("value", number, False), literal("</"), _DSML])
        return found

    def _texts(self, number: int) -> Iterator[list[Symbol]]:
        for place in self.json.shapes(number):
            listed = self.json.listed(place)
            if listed is not None:
                for text in listed:
                    if isinstance(text, str):
                        yield [literal(f"{text}</"), _DSML]
            elif "string" in kinds_of(self.json.shape(place)):
                text = text_symbol(self.json.shape(place), quoted=False)
                yield [_RAW] if text is None else [text, literal("</"), _DSML]

    def _admits_json(self, place: int) -> bool:
        listed = self.json.listed(place)
        if listed is not None:
            return not all(isinstance(value, str) for value in listed)
        return kinds_of(self.json.shape(place)) != ["string"]
