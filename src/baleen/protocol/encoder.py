"""Messages in, prompt out."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any, Final

from baleen.errors import UsageError
from baleen.protocol import tokens
from baleen.protocol.api_rules import check_prefix, check_request
from baleen.protocol.cache_break import find_cache_break
from baleen.protocol.chat import read_messages
from baleen.protocol.errors import MessageError, RevisionError
from baleen.protocol.layout import Layout, printer, response_schema
from baleen.protocol.layout_api import write_api, write_api_more
from baleen.protocol.layout_checkpoint import write_checkpoint, write_checkpoint_more
from baleen.protocol.message import Message, Role
from baleen.protocol.prompt import Prompt, Request
from baleen.protocol.revision import Effort, Flavor, Revision, effort_prefix
from baleen.protocol.segments import SegmentWriter
from baleen.protocol.tool_choice import ChoiceMode, ToolChoice, read_tool_choice
from baleen.protocol.tools import Tool, read_tools

_LOG: Final = logging.getLogger(__name__)

Restore = Callable[[Sequence[Message]], Sequence[Message]]


class Encoder:
    """Encodes conversations for one prompt revision, in one flavor. Holds no state.

    ``image_token`` is the placeholder for images. V4.1 has one; of the earlier models only the
    experimental vision model has, and it must be given here. Without one, an image is said to be
    unsupported, in words.

    ``missing_reasoning`` is what to do when a thinking turn that called tools came back without
    the field: ``"fill"`` writes it as empty and names it in the prompt's ``missing_reasoning``,
    ``"reject"`` refuses the request as the API can. Call ids with ``ET_`` say that it had none.
    """

    def __init__(
        self,
        revision: str = "0731",
        flavor: str = "api",
        image_token: str | None = None,
        missing_reasoning: str = "fill",
    ) -> None:
        try:
            self.revision = Revision(revision)
        except ValueError as error:
            names = ", ".join(known.value for known in Revision)
            raise RevisionError(
                f"unknown prompt revision {revision!r}", remedy=f"use one of {names}"
            ) from error
        try:
            self.flavor = Flavor(flavor)
        except ValueError as error:
            raise RevisionError(
                f"unknown encoder flavor {flavor!r}", remedy="use api or checkpoint"
            ) from error
        if missing_reasoning not in ("fill", "reject"):
            raise UsageError(
                f"missing_reasoning {missing_reasoning!r} is unknown", remedy="use fill or reject"
            )
        self._rejects = missing_reasoning == "reject"
        has_images = self.revision is Revision.V41
        self._image_token = image_token or (tokens.IMAGE if has_images else None)

    def encode(
        self,
        messages: Sequence[Any],
        tools: Sequence[Any] | None = None,
        tool_choice: Any = "auto",
        thinking: bool = True,
        effort: Effort = None,
        response_format: Mapping[str, Any] | None = None,
        continue_final: bool = False,
        keep_reasoning: bool = False,
        previous: Prompt | None = None,
        restore: Restore | None = None,
    ) -> Prompt:
        """Encode messages (dicts as in Chat Completions, or :class:`Message`) for one answer.

        ``effort`` None means the flavor's default, ``"none"`` switches thinking off.
        ``continue_final`` leaves the last assistant message open for the model to go on with,
        inside its reasoning if it has no content yet. ``keep_reasoning`` keeps what earlier turns
        thought even without tools, as the checkpoint encoder does with ``drop_thinking=False``.

        ``previous`` is an earlier prompt of the same conversation; if this one does not begin with
        it, ``cache_break_reason`` names the first message that differs.

        ``restore`` puts the tokens of turns that were sampled here in place of their messages, see
        :meth:`baleen.protocol.replay.ReplayStore.restore`.

        A forced ``tool_choice`` outside thinking starts the answer inside a block. With thinking
        the prompt is that of a free choice: the model thinks first, and whoever samples has to
        force the block after that; the prompt's ``choice`` says so.

        Raises:
            MessageError: a message or request field that cannot be encoded.
            ToolSchemaError: a tool definition that cannot be rendered.
            EffortError: an effort that this revision does not know.
        """
        if effort == "none" and self.flavor is Flavor.API:
            thinking, effort = False, None
        dumps = printer(self.revision, self.flavor)
        declared = read_tools(tools, self.flavor, dumps, closes=tool_choice != "none")
        choice = read_tool_choice(tool_choice, declared)
        read: Sequence[Message] = read_messages(messages, self.flavor, self._image_token)
        if self.flavor is Flavor.API and read[-1].is_prefix and not continue_final:
            check_prefix(read, declared, response_format)
        read = _mark_continuation(read if restore is None else restore(read), continue_final)
        missing = self._missing_reasoning(read) if thinking else ()
        start = _start(read[-1], thinking)
        forces_block = choice.forces and not thinking and start is None
        shown = _shown(declared, choice, only_chosen=forces_block)
        if self.flavor is Flavor.API:
            check_request(read, shown, response_format)
        layout = Layout(
            revision=self.revision,
            flavor=self.flavor,
            thinking=thinking,
            effort_text=effort_prefix(self.revision, self.flavor, effort) if thinking else "",
            tools=shown,
            response_schema=response_schema(response_format, self.revision, self.flavor),
            keep_reasoning=keep_reasoning,
            force_block=forces_block,
        )
        out = SegmentWriter()
        if self._has_api_layout:
            write_api(out, read, layout)
        else:
            write_checkpoint(out, read, layout)
        options = {
            "tools": tools,
            "tool_choice": tool_choice,
            "thinking": thinking,
            "effort": effort,
            "response_format": response_format,
            "keep_reasoning": keep_reasoning,
        }
        prompt = Prompt(
            new_segments=out.finish(),
            thinking=thinking,
            tools=tools,
            start="calls" if forces_block else start,
            choice=choice,
            request=Request(read, options, layout),
            marks=out.marks,
            sampled=out.sampled,
            missing_reasoning=missing,
        )
        return prompt if previous is None else _compared(previous, prompt)

    def _missing_reasoning(self, messages: Sequence[Message]) -> tuple[int, ...]:
        missing = tuple(
            message.index
            for message in messages
            if message.calls
            and message.reasoning is None
            and message.replay is None
            and not any("ET_" in call.id for call in message.calls)
        )
        if missing and self._rejects:
            raise MessageError(
                "The `reasoning_content` in the thinking mode must be passed back to the API.",
                index=missing[0],
                field="reasoning_content",
            )
        if missing:
            _LOG.warning(
                "messages%s called tools and came back without reasoning_content: the model is"
                " shown that it thought nothing",
                list(missing),
            )
        return missing

    @property
    def _has_api_layout(self) -> bool:
        return self.flavor is Flavor.API

    def extend(
        self, prompt: Prompt, messages: Sequence[Any], restore: Restore | None = None
    ) -> Prompt:
        """Go on from a prompt: the answer that it got, what followed, and the next answer's header.

        The same as encoding all messages at once. Where the new ones only append, which is the rule
        for requests with tools, the cost depends on the new ones alone; otherwise everything is
        encoded again and ``cache_break_reason`` says why.

        Raises:
            MessageError: a message that cannot be encoded.
        """
        request = prompt.request
        if request is None:
            raise MessageError("this prompt does not know what it was made of")
        known = request.messages[-1].index + 1
        read: Sequence[Message] = read_messages(
            messages, self.flavor, self._image_token, first_index=known
        )
        if not _appends(prompt, request, read):
            everything = [*prompt.messages, *read]
            return self.encode(everything, previous=prompt, restore=restore, **request.options)
        if restore is not None:
            read = restore([*_since_last_answer(prompt), *read])[-len(read) :]
        missing = self._missing_reasoning(read) if prompt.thinking else ()
        if self.flavor is Flavor.API:
            check_request(read, (), None)
        out = SegmentWriter()
        write_more = write_api_more if self._has_api_layout else write_checkpoint_more
        write_more(out, read, request.messages[-1], request.layout)
        return replace(
            prompt,
            new_segments=out.finish(),
            parent=prompt,
            request=replace(request, messages=read),
            marks=out.marks,
            sampled=out.sampled,
            missing_reasoning=(*prompt.missing_reasoning, *missing),
            _ids={},
        )


def _since_last_answer(prompt: Prompt) -> list[Message]:
    """What the new answer was given to; a turn without calls is recognised by it."""
    since: list[Message] = []
    for message in reversed(prompt.request.messages if prompt.request else ()):
        if message.role is Role.ASSISTANT:
            break
        since.append(message)
    return since[::-1]


def _appends(prompt: Prompt, request: Request, new: Sequence[Message]) -> bool:
    """Whether these messages leave everything before them as it is."""
    layout = request.layout
    keeps = not layout.thinking or bool(layout.tools) or layout.keep_reasoning
    moves_to_front = layout.revision is not Revision.V41 and layout.flavor is Flavor.API
    return (
        keeps
        and prompt.start is None
        and request.messages[-1].role is not Role.ASSISTANT
        and request.messages[-1].task is None
        and new[0].role is Role.ASSISTANT
        and not any(m.is_prefix or m.tools for m in new)
        and not (moves_to_front and any(m.role is Role.SYSTEM for m in new))
    )


def _compared(before: Prompt, after: Prompt) -> Prompt:
    found = find_cache_break(before.segments, after.segments, after.marks)
    return after if found is None else replace(after, cache_break_reason=str(found))


def _shown(declared: Sequence[Tool], choice: ToolChoice, *, only_chosen: bool) -> list[Tool]:
    """The tools of the Tools block; leaving some out breaks the prefix cache."""
    if choice.mode is ChoiceMode.NONE:
        return []
    return [tool for tool in declared if not only_chosen or choice.allows(tool)]


def _mark_continuation(messages: Sequence[Message], continue_final: bool) -> Sequence[Message]:
    final = messages[-1]
    misplaced = [m for m in messages if m.is_prefix and m is not final]
    if continue_final and final.role is not Role.ASSISTANT:
        misplaced.append(final)
    if misplaced:
        raise MessageError(
            "Invalid completion message: prefix set true with message which is not final message"
            " or message role is not assistant",
            index=misplaced[0].index,
            field="prefix",
        )
    if continue_final and not final.is_prefix:
        return [*messages[:-1], replace(final, is_prefix=True)]
    return messages


def _start(final: Message, thinking: bool) -> str | None:
    """Where the answer goes on; an empty prefix is the start of a turn."""
    if not final.is_prefix:
        return None
    if final.content:
        return "content"
    return "reasoning" if thinking and final.reasoning else None
