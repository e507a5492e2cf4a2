"""The tool-call markup as the encoder writes it: the Tools block and calls of earlier turns."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Final

from baleen.protocol import jsontext
from baleen.protocol.errors import MessageError
from baleen.protocol.message import ToolCall
from baleen.protocol.revision import Flavor, Revision
from baleen.protocol.segments import SPECIALS, Segment, SegmentWriter
from baleen.protocol.tokens import DSML


@dataclass(frozen=True, slots=True)
class Dialect:
    """The words after the DSML token."""

    block: str
    invoke: str
    parameter: str


Dumps = Callable[[Any], str]

_DSML_SEGMENT: Final = SPECIALS[DSML]
_V4: Final = Dialect("tool_calls", "invoke", "parameter")
_V41: Final = Dialect(" calls", " invoke", " parameter")

_TOOLS_HEAD: Final = """## Tools

You have access to a set of tools to help answer the user's question. You can invoke tools by \
writing a "<｜DSML｜{block}>" block like the following:

<｜DSML｜{block}>
<｜DSML｜{invoke} name="$TOOL_NAME">
<｜DSML｜{parameter} name="$PARAMETER_NAME" string="true|false">$PARAMETER_VALUE\
</｜DSML｜{parameter}>
...
</｜DSML｜{invoke}>
<｜DSML｜{invoke} name="$TOOL_NAME2">
...
</｜DSML｜{invoke}>
</｜DSML｜{block}>

String parameters should be specified as is and set `string="true"`. For all other types (numbers, \
booleans, arrays, objects), pass the value in JSON format and set `string="false"`.

If thinking_mode is enabled (triggered by <think>), you MUST output your complete reasoning inside \
<think>...</think> BEFORE any tool calls or final response.

Otherwise, output directly after </think> with tool calls or final response.

### Available Tool Schemas

"""
_TOOLS_TAIL: Final = (
    "\n\nYou MUST strictly follow the above defined tool name and parameter schemas to invoke tool"
    " calls.\n"
)


def dialect_of(revision: Revision) -> Dialect:
    """The words that a revision's tags use."""
    return _V41 if revision is Revision.V41 else _V4


def write_tools(out: SegmentWriter, schema_lines: Sequence[str], dialect: Dialect) -> None:
    """Write the Tools block; schema lines are ordinary text even where they spell markup."""
    out.template(
        _TOOLS_HEAD.format(block=dialect.block, invoke=dialect.invoke, parameter=dialect.parameter)
    )
    out.text("\n".join(schema_lines))
    out.text(_TOOLS_TAIL)


def write_block_opener(out: SegmentWriter, dialect: Dialect) -> None:
    """Open a block; required calls outside thinking start the model right behind it."""
    out.extend([("\n\n<", False), _DSML_SEGMENT])
    out.text(f"{dialect.block}>\n")


def write_calls(
    out: SegmentWriter, calls: Sequence[ToolCall], dialect: Dialect, flavor: Flavor
) -> None:
    """Write the calls of an earlier turn in the order given."""
    is_api_v4 = flavor is Flavor.API and dialect is _V4
    parameters_of = _api_parameters
    if flavor is Flavor.CHECKPOINT:
        is_v4 = dialect is _V4
        parameters_of = _checkpoint_parameters if is_v4 else _checkpoint_v41_parameters
    dumps = jsontext.dumps_api if is_api_v4 else jsontext.dumps
    segments: list[Segment] = [("\n\n<", False), _DSML_SEGMENT]
    before = f"{dialect.block}>\n"
    for call in calls:
        segments += (f"{before}<", False), _DSML_SEGMENT
        _add_call(segments, call, parameters_of(call, dumps), dialect, skips_blank=is_api_v4)
        before = f"{dialect.invoke}>\n"
    segments += (f"{before}</", False), _DSML_SEGMENT
    out.extend(segments)
    out.text(f"{dialect.block}>")


def _add_call(
    segments: list[Segment],
    call: ToolCall,
    parameters: list[tuple[str, bool, str]],
    dialect: Dialect,
    *,
    skips_blank: bool,
) -> None:
    """Add what stands between an invocation's first token and the name in its closing tag."""
    tag = dialect.parameter
    before = f'{dialect.invoke} name="{call.name}">\n'
    for key, is_string, value in parameters:
        kind = "true" if is_string else "false"
        segments += (
            (f"{before}<", False),
            _DSML_SEGMENT,
            (f'{tag} name="{key}" string="{kind}">{value}</', False),
            _DSML_SEGMENT,
        )
        before = f"{tag}>\n"
    # On a call without arguments the API leaves out the blank line that every other encoder has.
    blank = "" if parameters or skips_blank else "\n"
    segments += (f"{before}{blank}</", False), _DSML_SEGMENT


def _api_parameters(call: ToolCall, dumps: Dumps) -> list[tuple[str, bool, str]]:
    text = call.arguments
    try:
        value = jsontext.loads_api(text)
    except ValueError:
        value = None
    if not isinstance(value, dict):
        return [("arguments", True, text)]
    return _parameters(value, dumps)


def _checkpoint_v41_parameters(call: ToolCall, dumps: Dumps) -> list[tuple[str, bool, str]]:
    """This encoder takes objects, JSON of objects, and JSON strings that hold such JSON."""
    value: Any = call.arguments if call.given_as_object is None else call.given_as_object
    for _ in range(2):
        if isinstance(value, str):
            try:
                value = jsontext.loads_checkpoint(value)
            except ValueError:
                break
    return _parameters(value if isinstance(value, dict) else {"arguments": call.arguments}, dumps)


def _checkpoint_parameters(call: ToolCall, dumps: Dumps) -> list[tuple[str, bool, str]]:
    if call.given_as_object is not None:
        return [("arguments", False, dumps(call.given_as_object))]
    try:
        value = jsontext.loads_checkpoint(call.arguments)
    except ValueError:
        return [("arguments", True, call.arguments)]
    if not isinstance(value, dict):
        raise MessageError(
            f"arguments of call {call.id!r} to {call.name!r} are JSON but no object:"
            f" {call.arguments[:80]!r}",
            remedy="pass a JSON object; the checkpoint encoder has no form for anything else",
        )
    return _parameters(value, dumps)


def _parameters(value: dict[str, Any], dumps: Dumps) -> list[tuple[str, bool, str]]:
    return [
        (key, True, item)
        if isinstance(item, str)
        else (key, False, str(item) if type(item) is int else dumps(item))
        for key, item in value.items()
    ]
