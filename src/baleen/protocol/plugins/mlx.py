"""For mlx-lm: import this module before the server starts; set ``"tool_parser_type": "baleen"``.

    python -c "import baleen.protocol.plugins.mlx, runpy; \\
        runpy.run_module('mlx_lm.server', run_name='__main__')" --model FOLDER ...

The setting belongs into the model folder's ``tokenizer_config.json``. mlx-lm looks its parsers up
as modules of its own by that name and gives them the text between two tags.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from typing import Any, Final

from baleen.protocol import parse, tokens
from baleen.protocol.plugins.definitions import chat_definitions

tool_call_start: Final = f"<{tokens.DSML}tool_calls>"
tool_call_end: Final = f"</{tokens.DSML}tool_calls>"


def parse_tool_call(text: str, tools: Sequence[Any] | None = None) -> list[dict[str, Any]]:
    """The calls of one block, without its own tags.

    Raises:
        ValueError: there is none; mlx-lm shows the block as text then.
    """
    turn = parse(text, start="calls", thinking=False, tools=chat_definitions(tools))
    if not turn.tool_calls:
        raise ValueError("no complete tool call in the block")
    return [
        {"id": call.id, "name": call.name, "arguments": json.loads(call.arguments)}
        for call in turn.tool_calls
    ]


sys.modules.setdefault("mlx_lm.tool_parsers.baleen", sys.modules[__name__])
