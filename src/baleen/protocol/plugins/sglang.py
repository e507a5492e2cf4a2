"""For SGLang: import this module before the server starts, then ``--tool-call-parser baleen``.

    python -c "import baleen.protocol.plugins.sglang, runpy; \\
        runpy.run_module('sglang.launch_server', run_name='__main__')" --tool-call-parser baleen ...

SGLang hands out text, so markers are known by their spelling.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from sglang.srt.function_call.base_format_detector import (  # type: ignore[import-not-found]
    BaseFormatDetector,
)
from sglang.srt.function_call.core_types import (  # type: ignore[import-not-found]
    StreamingParseResult,
    StructureInfo,
    ToolCallItem,
)

from baleen.protocol import Parser, parse, tokens
from baleen.protocol.events import ArgumentsDelta, CallStart, ContentDelta, Event
from baleen.protocol.plugins.definitions import chat_definitions
from baleen.protocol.plugins.structural import structural_tag
from baleen.protocol.revision import Revision


class BaleenDetector(BaseFormatDetector):  # type: ignore[misc]
    """Reads calls; one object serves one request."""

    revision = Revision.R0731
    """Whose tags the grammar writes; the parser reads those of all."""

    def __init__(self) -> None:
        super().__init__()
        self._parser: Parser | None = None

    def has_tool_call(self, text: str) -> bool:
        """Whether a text holds a tag."""
        return f"<{tokens.DSML}" in text

    def detect_and_parse(self, text: str, tools: Sequence[Any]) -> Any:
        """Calls and content of a whole output."""
        turn = parse(text, thinking=False, tools=chat_definitions(tools))
        calls = [
            ToolCallItem(tool_index=index, name=call.name, parameters=call.arguments)
            for index, call in enumerate(turn.tool_calls)
        ]
        return StreamingParseResult(normal_text=turn.content, calls=calls)

    def parse_streaming_increment(self, new_text: str, tools: Sequence[Any]) -> Any:
        """What a further piece of the output adds."""
        if self._parser is None:
            self._parser = Parser(thinking=False, tools=chat_definitions(tools))
        return self._result(self._parser.feed(new_text))

    def finish(self, tools: Sequence[Any]) -> Any:
        """What was held back for a tag that did not come."""
        if self._parser is None:
            return StreamingParseResult()
        self._parser.finish()
        return self._result(self._parser.last_events)

    def _result(self, events: Sequence[Event]) -> Any:
        text = "".join(event.text for event in events if isinstance(event, ContentDelta))
        calls = [item for event in events if (item := self._item(event)) is not None]
        return StreamingParseResult(normal_text=text, calls=calls)

    def _item(self, event: Event) -> Any:
        if isinstance(event, CallStart):
            # The server reads these to tell how much of the arguments has been streamed.
            self.current_tool_id = event.index
            self.prev_tool_call_arr.append({"name": event.name, "arguments": {}})
            self.streamed_args_for_tool.append("")
            return ToolCallItem(tool_index=event.index, name=event.name, parameters="")
        if isinstance(event, ArgumentsDelta):
            self.streamed_args_for_tool[event.index] += event.text
            return ToolCallItem(tool_index=event.index, parameters=event.text)
        return None

    def get_structural_tag(
        self,
        tools: Sequence[Any] | None = None,
        tool_choice: Any = "auto",
        thinking_mode: bool = False,
        parallel_tool_calls: bool = True,
    ) -> Any:
        """The grammar that constrains the calls."""
        return structural_tag(
            tools,
            tool_choice,
            thinking=thinking_mode,
            parallel=parallel_tool_calls,
            revision=self.revision,
        )

    def structure_info(self) -> Any:
        """The frame around a call, for the server's own constrained decoding."""

        def frame(name: str) -> Any:
            opener = f'<{tokens.DSML}tool_calls>\n<{tokens.DSML}invoke name="{name}">\n'
            closer = f"\n</{tokens.DSML}invoke>\n</{tokens.DSML}tool_calls>"
            return StructureInfo(begin=opener, end=closer, trigger=f"<{tokens.DSML}tool_calls>")

        return frame


class BaleenV41Detector(BaleenDetector):
    """The same for V4.1, whose tags are written otherwise."""

    revision = Revision.V41


def register() -> None:
    """Make ``--tool-call-parser baleen`` and ``baleen-v4.1`` known to the server."""
    from sglang.srt.function_call.function_call_parser import (  # type: ignore[import-not-found]
        FunctionCallParser,
    )

    FunctionCallParser.ToolCallParserEnum["baleen"] = BaleenDetector
    FunctionCallParser.ToolCallParserEnum["baleen-v4.1"] = BaleenV41Detector


register()
