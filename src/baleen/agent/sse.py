"""Reading server-sent events: `data:` lines, a blank line after each event, `[DONE]` last."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from typing import Any

from baleen.errors import EndpointError

DONE = "[DONE]"


async def json_events(lines: AsyncIterator[str]) -> AsyncIterator[dict[str, Any]]:
    """The JSON objects of a stream up to `[DONE]` or its end.

    Comments and fields other than `data` are skipped, an event may span several `data` lines.

    Raises:
        EndpointError: an event is no JSON object.
    """
    data: list[str] = []
    async for line in lines:
        if line.startswith("data:"):
            data.append(line[5:].removeprefix(" "))
        elif not line and data:
            text, data = "\n".join(data), []
            if text == DONE:
                return
            yield _object(text)
    if data and data != [DONE]:
        yield _object("\n".join(data))


def _object(text: str) -> dict[str, Any]:
    try:
        value = json.loads(text)
    except ValueError:
        value = None
    if not isinstance(value, dict):
        raise EndpointError(
            f"the endpoint streamed {text[:120]!r}, which is no JSON object",
            remedy="is this an OpenAI-compatible Chat Completions endpoint?",
        )
    return value
