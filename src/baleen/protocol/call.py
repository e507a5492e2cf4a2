"""One tool call while it is being written: parameters in, argument JSON out, as early as is safe.

A string value streams at once if nothing can change its type any more. Held back until their end
are values that are not strings (they must prove to be JSON), values whose attribute and schema
disagree, a first parameter named ``arguments`` or ``input`` that the schema does not know (it may
be a wrapper around the real ones), and JSON in place of parameters. What has been emitted is never
taken back.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final, NamedTuple

from baleen.protocol.jsontext import loads_rfc8259
from baleen.protocol.schema import Schema
from baleen.protocol.turn import CallStatus, ParsedCall, RepairKind
from baleen.protocol.values import Value, quote, read_value

_BODY_KEY: Final = "arguments"
_WRAPPERS: Final = frozenset({"arguments", "input"})

Emit = Callable[[str], None]
Count = Callable[[RepairKind], None]


class _Parameter(NamedTuple):
    key: str
    is_string: bool | None
    raw: str


class CallBuilder:
    """Builds the arguments of one call.

    ``emit`` is given each further piece of the argument text, ``count`` each repair.
    """

    __slots__ = (
        "_body",
        "_count_repair",
        "_emit",
        "_held",
        "_is_string",
        "_key",
        "_num_parameters",
        "_repair",
        "_schema",
        "_streams",
        "_value",
        "_whole",
        "_wrapper",
        "id",
        "name",
        "pieces",
        "status",
    )

    def __init__(
        self,
        call_id: str,
        name: str,
        schema: Schema | None,
        *,
        repair: bool,
        emit: Emit,
        count: Count,
    ) -> None:
        self.id = call_id
        self.name = name
        self.pieces: list[str] = []
        self.status = CallStatus.CLEAN
        self._schema = schema
        self._repair = repair
        self._emit = emit
        self._count_repair = count
        self._num_parameters = 0
        self._wrapper: _Parameter | None = None
        self._body: list[str] = []
        self._whole: str | None = None
        self._key = ""
        self._is_string: bool | None = True
        self._held: list[str] = []
        self._streams = False
        self._value: Schema | None = None

    # --- parameters ----------------------------------------------------------------------------

    def start_parameter(self, key: str, is_string: bool | None) -> None:
        """Begin a parameter; ``is_string`` None means that its tag did not say."""
        self._release_wrapper()
        self._key, self._is_string, self._held = key, is_string, []
        self._value = self._schema.property(key) if self._schema is not None else None
        self._streams = self._may_stream()
        if self._streams:
            if is_string is None:
                self.count(RepairKind.MISSING_ATTRIBUTE)
            self._write_key(key, opening='"')

    def _may_stream(self) -> bool:
        if self._is_string is False or self._may_be_wrapper():
            return False
        if not self._repair:
            return self._is_string is True
        return self._value is None or self._value.admits_strings()

    def _may_be_wrapper(self) -> bool:
        return (
            self._repair
            and self._key in _WRAPPERS
            and self._num_parameters == 0
            and self._schema is not None
            and self._key not in self._schema.properties
        )

    def feed(self, text: str) -> None:
        """More of the parameter's raw text."""
        if self._streams:
            piece = quote(text)[1:-1]
            self.pieces.append(piece)
            self._emit(piece)
        else:
            self._held.append(text)

    def end_parameter(self) -> None:
        """The parameter's raw text is complete."""
        if self._streams:
            self._write('"')
            return
        parameter = _Parameter(self._key, self._is_string, "".join(self._held))
        self._held = []
        if self._may_be_wrapper():
            self._wrapper = parameter
        else:
            self._write_parameter(parameter)

    def _write_parameter(self, parameter: _Parameter) -> None:
        schema = self._schema.property(parameter.key) if self._schema is not None else None
        value = read_value(parameter.raw, parameter.is_string, schema, repair=self._repair)
        self._write_key(parameter.key)
        self._write_value(value)

    def _write_key(self, key: str, opening: str = "") -> None:
        self._write(f"{', ' if self._num_parameters else '{'}{quote(key)}: {opening}")
        self._num_parameters += 1

    def _write_value(self, value: Value) -> None:
        if value.repair is not None:
            self.count(value.repair)
        self._write(value.lexeme)

    # --- other bodies --------------------------------------------------------------------------

    def take_whole(self, lexeme: str) -> None:
        """All arguments at once, as the text of a JSON object."""
        self._whole = lexeme

    @property
    def takes_body(self) -> bool:
        """Whether text outside parameters may still turn out to be a JSON body."""
        return self._num_parameters == 0 and self._wrapper is None

    def feed_body(self, text: str) -> None:
        """Text between the tags of an invocation without parameters so far."""
        self._body.append(text)

    def _release_wrapper(self) -> None:
        """A second parameter proves that the first was no wrapper, and JSON body no body."""
        if "".join(self._body).strip():
            self.count(RepairKind.STRAY_TEXT)
        self._body = []
        wrapper, self._wrapper = self._wrapper, None
        if wrapper is not None:
            self._write_parameter(wrapper)

    # --- the end -------------------------------------------------------------------------------

    def close(self) -> ParsedCall:
        """The invocation is complete."""
        body = "".join(self._body).strip()
        if self._whole is not None:
            self._write(self._whole)
        elif self._wrapper is not None:
            self._close_wrapper(self._wrapper)
        elif self._num_parameters:
            self._write("}")
        elif body:
            self._close_body(body)
        else:
            self._write("{}")
        if not self.name:
            self.count(RepairKind.EMPTY_NAME)
        return ParsedCall(self.id, self.name, "".join(self.pieces), self.status)

    def abandon(self) -> ParsedCall:
        """The output ended within the invocation; the arguments stay as they were emitted."""
        return ParsedCall(self.id, self.name, "".join(self.pieces), CallStatus.INCOMPLETE)

    def _close_wrapper(self, wrapper: _Parameter) -> None:
        inner = _object_lexeme(wrapper.raw)
        if inner is not None and self._fits(inner):
            self.count(RepairKind.UNWRAPPED)
            self._write(inner)
            return
        self._write_parameter(wrapper)
        self._write("}")

    def _fits(self, lexeme: str) -> bool:
        """Whether all keys of an object are parameters of this tool."""
        known = self._schema.properties if self._schema is not None else {}
        return all(key in known for key in loads_rfc8259(lexeme))

    def _close_body(self, body: str) -> None:
        lexeme = _object_lexeme(body) if self._repair else None
        if lexeme is not None:
            self.count(RepairKind.JSON_BODY)
            self._write(lexeme)
            return
        self.count(RepairKind.INVALID_JSON)
        self._write_key(_BODY_KEY)
        self._write(quote(body) + "}")

    # --- bookkeeping ---------------------------------------------------------------------------

    def count(self, kind: RepairKind) -> None:
        """Count a repair against this call."""
        self._count_repair(kind)
        if kind in (RepairKind.INVALID_JSON, RepairKind.EMPTY_NAME):
            self.status = CallStatus.MALFORMED
        elif self.status is CallStatus.CLEAN:
            self.status = CallStatus.REPAIRED

    def _write(self, text: str) -> None:
        self.pieces.append(text)
        self._emit(text)


def _object_lexeme(raw: str) -> str | None:
    """The text of a JSON object, also of one inside a JSON string; None if it is neither."""
    text = raw.strip()
    try:
        value = loads_rfc8259(text)
        if isinstance(value, str):
            text = value.strip()
            value = loads_rfc8259(text)
    except ValueError:
        return None
    return text if isinstance(value, dict) else None
