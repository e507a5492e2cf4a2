"""The prompt layout of the encoder that ships beside the weights."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from baleen.protocol import jsontext, tokens
from baleen.protocol.arrange import (
    drop_reasoning,
    last_user,
    last_user_v41,
    merge,
    sort_results,
)
from baleen.protocol.layout import (
    Layout,
    write_header,
    write_reminder,
    write_replay,
    write_response_format,
    write_suffixes,
    write_text,
    write_user,
)
from baleen.protocol.markup import write_block_opener, write_calls, write_tools
from baleen.protocol.message import Message, Role
from baleen.protocol.revision import Revision
from baleen.protocol.segments import SegmentWriter
from baleen.protocol.tools import read_tools

_ASKING: Final = (Role.USER, Role.DEVELOPER)


def write_checkpoint(out: SegmentWriter, messages: Sequence[Message], layout: Layout) -> None:
    """Write the whole prompt; after an assistant turn it ends without another header."""
    turns = merge(_with_front(messages, layout))
    sort_results(turns)
    drops = not (layout.keep_reasoning or layout.tools or any(turn.tools for turn in turns))
    if layout.thinking and drops:
        turns = drop_reasoning(turns, _last_user(turns, layout))
    out.special(tokens.BOS)
    leads = bool(layout.effort_text) or (bool(turns) and turns[0].role is Role.SYSTEM)
    if leads and layout.revision is Revision.V41:
        out.special(tokens.SYSTEM)
    out.text(layout.effort_text)
    _write_turns(out, turns, None, layout, drops=drops)


def write_checkpoint_more(
    out: SegmentWriter, messages: Sequence[Message], previous: Message, layout: Layout
) -> None:
    """Write an answer and what followed it behind a prompt that asked for it."""
    turns = merge(messages)
    sort_results(turns)
    _write_turns(out, turns, previous, layout, drops=False)


def _write_turns(
    out: SegmentWriter,
    turns: Sequence[Message],
    before: Message | None,
    layout: Layout,
    *,
    drops: bool,
) -> None:
    last = _last_user(turns, layout)
    for place, turn in enumerate(turns):
        out.mark(turn.index, turn.role)
        previous = turns[place - 1] if place else before
        following = turns[place + 1] if place + 1 < len(turns) else None
        thinks = layout.thinking and (not drops or place > last)
        _write_turn(out, turn, previous, layout, thinks=thinks)
        if following is None or following.role in (Role.ASSISTANT, Role.REMINDER):
            asks = previous is not None and layout.revision is Revision.V41
            if turn.task is not None or turn.role in _ASKING or (asks and turn.role is Role.SYSTEM):
                opens = thinks or (layout.thinking and place == last)
                write_header(out, turn, layout, thinking=opens)
            if following is None and layout.force_block:
                write_block_opener(out, layout.dialect)


def _last_user(turns: Sequence[Message], layout: Layout) -> int:
    return last_user_v41(turns) if layout.revision is Revision.V41 else last_user(turns)


def _with_front(messages: Sequence[Message], layout: Layout) -> Sequence[Message]:
    """Tools and response format hang on a system turn; assume an empty one where none leads."""
    needs_system = bool(layout.tools) or layout.response_schema is not None
    if needs_system and messages[0].role is not Role.SYSTEM:
        return [Message(Role.SYSTEM), *messages]
    return messages


def _write_turn(
    out: SegmentWriter, turn: Message, previous: Message | None, layout: Layout, *, thinks: bool
) -> None:
    if turn.role is Role.USER:
        write_user(out, turn)
    elif turn.role is Role.REMINDER:
        write_reminder(out, turn)
    elif turn.role is Role.ASSISTANT:
        _write_assistant(out, turn, previous, layout, thinks=thinks)
    else:
        if turn.role is Role.DEVELOPER:
            out.special(tokens.USER)
        elif previous is not None and layout.revision is Revision.V41:
            out.special(tokens.SYSTEM)
        write_text(out, turn.content, turn.images)
        if previous is None:
            write_suffixes(out, layout)
        _write_own_suffixes(out, turn, layout)


def _write_assistant(
    out: SegmentWriter, turn: Message, previous: Message | None, layout: Layout, *, thinks: bool
) -> None:
    thinks = thinks and (previous is None or previous.task is None)
    if write_replay(out, turn, thinks=thinks):
        return
    if thinks:
        out.text(turn.reasoning or "")
        if turn.content or not turn.is_prefix:
            out.special(tokens.THINK_CLOSE)
    out.text(turn.content)
    if turn.calls:
        write_calls(out, turn.calls, layout.dialect, layout.flavor)
    if not (turn.is_open or turn.is_prefix):
        out.special(tokens.EOS)


def _write_own_suffixes(out: SegmentWriter, turn: Message, layout: Layout) -> None:
    """Tools and response format that a system or developer message carries itself."""
    if turn.tools:
        out.text("\n\n")
        lines = [tool.line for tool in read_tools(turn.tools, layout.flavor)]
        write_tools(out, lines, layout.dialect)
    if turn.response_format:
        write_response_format(out, jsontext.dumps(turn.response_format))
