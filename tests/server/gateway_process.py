"""A gateway in a process of its own, to be killed.

Arguments: state folder, seconds per token, and how large a file may get (0: as it likes).

It says the same text to every request, from wherever the request's prompt has got to.
"""

from __future__ import annotations

import asyncio
import resource
import sys
from pathlib import Path

from tokenizers import Tokenizer

from baleen.assets import nano_dir
from baleen.server.base import Generation
from baleen.server.config import GatewayConfig
from baleen.server.gateway import Gateway
from baleen.server.http import HttpServer
from baleen.server.upstreams.scripted import Line, ScriptedUpstream, segments_of

TEXT = "Slowly now.</think>" + " ".join(f"word{number}" for number in range(60))


async def main(state_dir: str, delay_s: float, max_file_bytes: int) -> None:
    tokenizer = Tokenizer.from_file(str(nano_dir() / "tokenizer.json"))

    def say(asked: Generation) -> Line:
        """What is left of the text behind what the prompt holds of it already."""
        ids = upstream._encoder.encode(segments_of(TEXT))
        asked_ids = list(asked.ids)
        said = next(
            n for n in range(len(ids), -1, -1) if asked_ids[len(asked_ids) - n :] == ids[:n]
        )
        return Line(ids[said:], delay_s=delay_s)

    upstream = ScriptedUpstream(tokenizer, say)
    config = GatewayConfig(state_dir=Path(state_dir), effort="low")
    server = HttpServer(Gateway(config, tokenizer, upstream))
    port = await server.start("127.0.0.1", 0)
    if max_file_bytes:
        resource.setrlimit(resource.RLIMIT_FSIZE, (max_file_bytes, max_file_bytes))
    print(port, flush=True)
    await asyncio.Event().wait()


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1], float(sys.argv[2]), int(sys.argv[3])))
