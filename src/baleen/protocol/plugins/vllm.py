"""For vLLM: ``--tool-parser-plugin baleen.protocol.plugins.vllm --tool-call-parser baleen``.

``--enable-auto-tool-choice`` goes with it. With ``--reasoning-parser-plugin`` and the same module,
``--reasoning-parser baleen`` splits the reasoning off too. Name the module and not its file: vLLM
would load a file under the name ``vllm``. It hands out text, so markers are known by spelling.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from vllm.entrypoints.generate.base.protocol import (  # type: ignore[import-not-found]
    DeltaFunctionCall,
    DeltaMessage,
    DeltaToolCall,
    ExtractedToolCallInformation,
    FunctionCall,
    ToolCall,
)
from vllm.reasoning import ReasoningParserManager  # type: ignore[import-not-found]
from vllm.reasoning.abs_reasoning_parsers import (  # type: ignore[import-not-found]
    ReasoningParser,
)
from vllm.tool_parsers.abstract_tool_parser import (  # type: ignore[import-not-found]
    ToolParser,
    ToolParserManager,
)

from baleen.protocol import Parser, parse, tokens
from baleen.protocol.events import ArgumentsDelta, CallStart, ContentDelta, Event
from baleen.protocol.plugins.definitions import chat_definitions
from baleen.protocol.plugins.reasoning_split import ReasoningSplit, Split
from baleen.protocol.plugins.structural import structural_tag
from baleen.protocol.revision import Revision


def _options(request: Any) -> dict[str, Any]:
    return {
        "tools": chat_definitions(request.tools),
        "thinking": False,
        "calls": request.tool_choice != "none",
    }


class BaleenToolParser(ToolParser):  # type: ignore[misc]
    """Reads calls; one object serves one request."""

    supports_required_and_named = False
    engine_based_streaming = True
    """The server hands over each piece once, and asks at the end for what was held back."""

    def __init__(self, tokenizer: Any, tools: Any = None) -> None:
        super().__init__(tokenizer, tools)
        self._parser: Parser | None = None

    def adjust_request(self, request: Any) -> Any:
        """The tags hold a special token, which must not be left out of the text."""
        request = super().adjust_request(request)
        request.skip_special_tokens = False
        return request

    def get_structural_tag(
        self, request: Any, *, reasoning: bool = False, strict_level: Any = None
    ) -> Any:
        """The grammar that constrains the calls; in the dialect that the vocabulary tells."""
        is_v41 = tokens.SYSTEM in self.vocab
        return structural_tag(
            request.tools,
            request.tool_choice,
            thinking=reasoning,
            parallel=getattr(request, "parallel_tool_calls", None) is not False,
            revision=Revision.V41 if is_v41 else Revision.R0731,
        )

    def extract_tool_calls(self, model_output: str, request: Any) -> Any:
        """Calls and content of a whole output."""
        turn = parse(model_output, **_options(request))
        calls = [
            ToolCall(
                id=call.id,
                type="function",
                function=FunctionCall(name=call.name, arguments=call.arguments),
            )
            for call in turn.tool_calls
        ]
        return ExtractedToolCallInformation(
            tools_called=bool(calls), tool_calls=calls, content=turn.content or None
        )

    def extract_tool_calls_streaming(
        self,
        previous_text: str,
        current_text: str,
        delta_text: str,
        previous_token_ids: Sequence[int],
        current_token_ids: Sequence[int],
        delta_token_ids: Sequence[int],
        request: Any,
    ) -> Any:
        """What a further piece of the output adds; None if nothing yet."""
        if self._parser is None:
            self._parser = Parser(**_options(request))
        events = self._parser.feed(delta_text)
        return self._delta(events) if events else None

    def finish_streaming(self) -> Any:
        """What was held back for a tag that did not come; None if nothing."""
        if self._parser is None:
            return None
        self._parser.finish()
        return self._delta(self._parser.last_events)

    def _delta(self, events: Sequence[Event]) -> Any:
        content = "".join(event.text for event in events if isinstance(event, ContentDelta))
        calls = [delta for event in events if (delta := self._call_delta(event)) is not None]
        if not content and not calls:
            return None
        return DeltaMessage(content=content or None, tool_calls=calls)

    def _call_delta(self, event: Event) -> Any:
        if isinstance(event, CallStart):
            # The server reads these two to tell whether, and how, the turn called.
            self.current_tool_id = event.index
            self.prev_tool_call_arr.append({"name": event.name, "arguments": ""})
            self.streamed_args_for_tool.append("")
            function = DeltaFunctionCall(name=event.name, arguments="")
            return DeltaToolCall(index=event.index, id=event.id, type="function", function=function)
        if isinstance(event, ArgumentsDelta):
            self.streamed_args_for_tool[event.index] += event.text
            self.prev_tool_call_arr[event.index]["arguments"] += event.text
            function = DeltaFunctionCall(arguments=event.text)
            return DeltaToolCall(index=event.index, function=function)
        return None


class BaleenReasoningParser(ReasoningParser):  # type: ignore[misc]
    """Splits reasoning from what follows it; a call that opens within it ends it."""

    engine_based_streaming = True

    def __init__(self, tokenizer: Any, *arguments: Any, **more: Any) -> None:
        super().__init__(tokenizer, *arguments, **more)
        ids = tokenizer.get_vocab()
        self._splitter = ReasoningSplit()
        # The last of these in a prompt or an output tells whether reasoning is open behind it.
        ends = {tokens.THINK_OPEN: False, tokens.THINK_CLOSE: True, tokens.DSML: True}
        self._ends = {ids[token]: is_end for token, is_end in ends.items() if token in ids}

    @property
    def reasoning_start_str(self) -> str:
        """The opening tag; the prompt ends with it."""
        return tokens.THINK_OPEN

    @property
    def reasoning_end_str(self) -> str:
        """The closing tag."""
        return tokens.THINK_CLOSE

    def has_engine_confirmed_reasoning_end(self) -> bool:
        """Whether the reasoning is over in what was streamed so far."""
        return self._splitter.has_ended

    def is_reasoning_end(self, input_ids: Sequence[int]) -> bool:
        """Whether the reasoning is over at the end of a prompt or an output."""
        found = (self._ends[number] for number in reversed(input_ids) if number in self._ends)
        return next(found, False)

    def extract_content_ids(self, input_ids: list[int]) -> list[int]:
        """The ids behind the reasoning."""
        for place, number in enumerate(input_ids):
            if self._ends.get(number):
                return input_ids[place + 1 :]
        return []

    def extract_reasoning(self, model_output: str, request: Any) -> tuple[Any, Any]:
        """Reasoning and the rest of a whole output."""
        splitter = ReasoningSplit()
        parts = (splitter.feed(model_output), splitter.finish())
        reasoning, rest = ("".join(texts) for texts in zip(*parts, strict=True))
        return reasoning or None, rest or None

    def extract_reasoning_streaming(
        self,
        previous_text: str,
        current_text: str,
        delta_text: str,
        previous_token_ids: Sequence[int],
        current_token_ids: Sequence[int],
        delta_token_ids: Sequence[int],
    ) -> Any:
        """What a further piece adds: to the reasoning, to the rest, or to both."""
        return self._delta(self._splitter.feed(delta_text))

    def finish_streaming(self) -> Any:
        """What was held back for a tag that did not come; None if nothing."""
        return self._delta(self._splitter.finish())

    @staticmethod
    def _delta(split: Split) -> Any:
        if not split.reasoning and not split.rest:
            return None
        return DeltaMessage(reasoning=split.reasoning or None, content=split.rest or None)


ToolParserManager.register_module("baleen", module=BaleenToolParser)
ReasoningParserManager.register_module("baleen", module=BaleenReasoningParser)
