"""The prompt layout of the hosted API."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from baleen.protocol import tokens
from baleen.protocol.arrange import merge, sort_blocks, sort_results
from baleen.protocol.layout import (
    Layout,
    write_header,
    write_reminder,
    write_replay,
    write_suffixes,
    write_text,
    write_user,
)
from baleen.protocol.markup import write_block_opener, write_calls
from baleen.protocol.message import Message, Role
from baleen.protocol.revision import Revision
from baleen.protocol.segments import SegmentWriter


def write_api(out: SegmentWriter, messages: Sequence[Message], layout: Layout) -> None:
    """Write the whole prompt, the header of the answer included."""
    out.special(tokens.BOS)
    if layout.revision is Revision.V41:
        turns = _write_front_v41(out, messages, layout)
    else:
        turns = _write_front(out, messages, layout)
    _write_turns(out, turns, layout)


def write_api_more(
    out: SegmentWriter, messages: Sequence[Message], previous: Message, layout: Layout
) -> None:
    """Write an answer and what followed it behind a prompt that asked for it."""
    if layout.revision is Revision.V41:
        turns = merge(_without_repeats(messages))
        sort_results(turns)
    else:
        turns = _sorted_by_id(messages)
    _write_turns(out, turns, layout, previous, has_header=True)


def _write_front(out: SegmentWriter, messages: Sequence[Message], layout: Layout) -> list[Message]:
    """All system texts, wherever they stood; returns the turns behind them."""
    out.text(layout.effort_text)
    out.text("\n\n".join(m.content for m in messages if m.role is Role.SYSTEM and m.content))
    write_suffixes(out, layout)
    return _sorted_by_id([m for m in messages if m.role is not Role.SYSTEM])


def _sorted_by_id(messages: Sequence[Message]) -> list[Message]:
    turns = merge(_joined_users([_with_sorted_calls(message) for message in messages]))
    for turn in turns:
        if turn.blocks:
            sort_blocks(turn.blocks, lambda block: block.call_id or "")
    return turns


def _joined_users(messages: Sequence[Message]) -> list[Message]:
    """Consecutive user messages as one; empty ones leave no trace, not even a separator."""
    joined: list[Message] = []
    for message in messages:
        before = joined[-1] if joined else None
        if before is not None and _is_plain_user(before) and _is_plain_user(message):
            if message.content:
                text = "\n\n".join(filter(None, (before.content, message.content)))
                joined[-1] = replace(before, content=text)
        else:
            joined.append(message)
    return joined


def _is_plain_user(message: Message) -> bool:
    return message.role is Role.USER and message.blocks is None and message.task is None


def _with_sorted_calls(message: Message) -> Message:
    if len(message.calls) < 2:
        return message
    return replace(message, calls=sorted(message.calls, key=lambda call: call.id))


def _write_front_v41(
    out: SegmentWriter, messages: Sequence[Message], layout: Layout
) -> list[Message]:
    """The leading system text; later ones are turns, and calls stay in their order."""
    first = messages[0] if messages[0].role is Role.SYSTEM else Message(Role.SYSTEM)
    if first.content or layout.effort_text or layout.tools or layout.response_schema is not None:
        out.special(tokens.SYSTEM)
    out.text(layout.effort_text)
    write_text(out, first.content, first.images)
    write_suffixes(out, layout)
    rest = messages[1:] if messages[0].role is Role.SYSTEM else messages
    turns = merge(_without_repeats(rest))
    sort_results(turns)
    return turns


def _without_repeats(messages: Sequence[Message]) -> list[Message]:
    """Of consecutive reminders the first one counts; empty system texts do not count."""
    kept: list[Message] = []
    for message in messages:
        if message.role is Role.SYSTEM and not message.content:
            continue
        if message.role is Role.REMINDER and kept and kept[-1].role is Role.REMINDER:
            continue
        kept.append(message)
    return kept


def _write_turns(
    out: SegmentWriter,
    turns: Sequence[Message],
    layout: Layout,
    previous: Message | None = None,
    *,
    has_header: bool = False,
) -> None:
    """Write turns and the header of the answer; the first turn may have its header already."""
    keeps = layout.thinking and (bool(layout.tools) or layout.keep_reasoning)
    for turn in turns:
        out.mark(turn.index, turn.role)
        if turn.role is Role.USER:
            write_user(out, turn)
        elif turn.role is Role.REMINDER:
            write_reminder(out, turn)
        elif turn.role is Role.SYSTEM:
            out.special(tokens.SYSTEM)
            write_text(out, turn.content, turn.images)
        elif turn.is_prefix:
            _write_continued(out, turn, previous, layout)
            return
        else:
            thinks = keeps and (previous is None or previous.task is None)
            if not has_header:
                write_header(out, previous, layout, thinking=thinks)
            _write_assistant(out, turn, layout, thinks=thinks)
        has_header = False
        previous = turn
    write_header(out, previous, layout, thinking=layout.thinking)
    if layout.force_block:
        write_block_opener(out, layout.dialect)


def _write_assistant(out: SegmentWriter, turn: Message, layout: Layout, *, thinks: bool) -> None:
    if write_replay(out, turn, thinks=thinks):
        return
    if thinks:
        out.text(turn.reasoning or "")
        out.special(tokens.THINK_CLOSE)
    out.text(turn.content)
    if turn.calls:
        write_calls(out, turn.calls, layout.dialect, layout.flavor)
    if not turn.is_open:
        out.special(tokens.EOS)


def _write_continued(
    out: SegmentWriter, turn: Message, previous: Message | None, layout: Layout
) -> None:
    """A turn that the model goes on with: inside its reasoning until there is content."""
    write_header(out, previous, layout, thinking=layout.thinking)
    if layout.thinking:
        out.text(turn.reasoning or "")
        if turn.content:
            out.special(tokens.THINK_CLOSE)
    out.text(turn.content)
