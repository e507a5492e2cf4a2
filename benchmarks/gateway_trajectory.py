"""A long conversation with a careless client: what of it is computed twice, what turns cost.

The client drops reasoning, writes arguments with other spacing and key order, and returns parallel
results in another order, turn after turn, through the gateway and over HTTP. Beside it the same
messages are encoded as two others would: by the published API library, which renders them again
(`deepseek-recipe`), and by a gateway that passes them on to an engine's own template, stood for by
the same rendering with the client's own order of calls.

    python benchmarks/gateway_trajectory.py            # 500 turns, and a store of 100,000 turns
    python benchmarks/gateway_trajectory.py --short

Writes `results/gateway_trajectory.csv`, and what each turn cost to `gateway_trajectory_turns.csv`
with a picture beside it.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import logging
import random
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import httpx
from deepseek_recipe import ChatCompletionRequest, ConversionOptions, DeepseekV4Encoding
from results import FOLDER, write_results
from tokenizers import Tokenizer

from baleen.assets import nano_dir
from baleen.protocol import Encoder
from baleen.protocol.message import Message, Role, ToolCall
from baleen.protocol.prompt import Prompt
from baleen.protocol.replay import ReplayStore
from baleen.protocol.tokenizing import encoder_for
from baleen.server.base import Generation
from baleen.server.config import GatewayConfig
from baleen.server.gateway import Gateway
from baleen.server.http import HttpServer
from baleen.server.prefix import num_shared
from baleen.server.upstreams.scripted import ScriptedUpstream, segments_of

_OTHERS_TURNS = 100
"""They encode everything again at every turn."""
TOOLS = [
    {
        "type": "function",
        "function": {
            "name": "look",
            "description": "Look something up",
            "parameters": {
                "type": "object",
                "properties": {
                    "path": {"type": "string"},
                    "lines": {"type": "array", "items": {"type": "integer"}},
                    "ratio": {"type": "number"},
                },
                "required": ["path"],
            },
        },
    }
]


def spoken(turn: int) -> str:
    """What the model samples in a turn: two calls, in spellings that do not survive rendering."""
    draw = random.Random(turn)
    calls = "\n".join(
        '<｜DSML｜invoke name="look">\n'
        f'<｜DSML｜parameter name="path" string="true">src/file{turn}_{n}.py</｜DSML｜parameter>\n'
        f'<｜DSML｜parameter name="lines" string="false">[{turn},{turn + 10}]</｜DSML｜parameter>\n'
        f'<｜DSML｜parameter name="ratio" string="false">{draw.randrange(9)}.10'
        "</｜DSML｜parameter>\n"
        "</｜DSML｜invoke>"
        for n in range(2)
    )
    return (
        f"Step {turn}: compare both files.\n\n</think>\nLooking at step {turn}.\n\n"
        f"<｜DSML｜tool_calls>\n{calls}\n</｜DSML｜tool_calls>"
    )


def careless(message: dict[str, Any]) -> list[dict[str, Any]]:
    """An answer and its results as the client sends them back."""
    calls = json.loads(json.dumps(message["tool_calls"]))
    for call in calls:
        arguments = json.loads(call["function"]["arguments"])
        turned = dict(reversed(arguments.items()))
        call["function"]["arguments"] = json.dumps(turned, indent=2)
    sent = {"role": "assistant", "content": message["content"], "tool_calls": calls}
    results = [
        {"role": "tool", "tool_call_id": call["id"], "content": f"def f(): ...  # {call['id'][:7]}"}
        for call in reversed(calls)
    ]
    return [sent, *results]


class Other:
    """A gateway that renders what it is sent; keeps what the engine behind it has computed."""

    def __init__(self, tokenizer: Tokenizer, *, sorts: bool) -> None:
        self._encode, self._sorts = encoder_for(tokenizer).encode, sorts
        self._computed: list[int] = []
        self.reusable = self.reused = self.most = 0

    def turn(self, messages: list[Any], sampled: list[int]) -> None:
        """Render a prompt, compare it with what is computed, take the answer in."""
        ids = self._encode(segments_of(self._render(messages)))
        self.reusable += len(self._computed)
        shared = num_shared(self._computed, ids)
        self.reused += shared
        self.most = max(self.most, len(ids) - shared) if self._computed else 0
        self._computed = [*ids, *sampled]

    def _render(self, messages: list[Any]) -> str:
        if not self._sorts:
            return Encoder(flavor="checkpoint").encode(messages, tools=TOOLS, effort="low").text
        body = {"model": "DeepSeek-V4-Pro", "messages": messages, "tools": TOOLS}
        asked = ChatCompletionRequest({**body, "reasoning_effort": "low"})
        conversation = asked.convert(ConversionOptions()).conversation
        return str(DeepseekV4Encoding().render_conversation(conversation).prompt)


async def trajectory(num_turns: int) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """Run the conversation; returns its figures and what each turn cost."""
    tokenizer = Tokenizer.from_file(str(nano_dir() / "tokenizer.json"))
    turns = iter(range(num_turns))

    def say(_: Generation) -> str:
        return spoken(next(turns))

    upstream = ScriptedUpstream(tokenizer, say, context_tokens=1 << 20, tokens_per_piece=16)
    others = {"recipe": Other(tokenizer, sorts=True), "pass-through": Other(tokenizer, sorts=False)}
    took: list[float] = []
    prepared: list[float] = []
    valid: list[bool] = []
    with tempfile.TemporaryDirectory() as state:
        gateway = Gateway(GatewayConfig(state_dir=Path(state), effort="low"), tokenizer, upstream)
        prepare = gateway.preparer.prepare

        async def timed(*given: Any) -> Any:
            started = time.process_time()
            found = await prepare(*given)
            prepared.append(time.process_time() - started)
            return found

        gateway.preparer.prepare = timed  # type: ignore[method-assign]
        server = HttpServer(gateway)
        port = await server.start("127.0.0.1", 0)
        messages: list[Any] = [{"role": "user", "content": "Compare all files."}]
        async with httpx.AsyncClient(timeout=60, trust_env=False) as http:
            for turn in range(num_turns):
                started = time.process_time()
                response = await http.post(
                    f"http://127.0.0.1:{port}/v1/chat/completions",
                    json={"messages": messages, "tools": TOOLS},
                )
                took.append(time.process_time() - started)
                message = response.json()["choices"][0]["message"]
                valid.append(len(message.get("tool_calls", ())) == 2)
                if turn < _OTHERS_TURNS:
                    sampled = upstream._encoder.encode(segments_of(spoken(turn)))
                    for other in others.values():
                        other.turn(messages, sampled)
                messages += careless(message)
        reused = server.gateway.telemetry.reused.plain
        reusable = server.gateway.telemetry.reusable.plain
        await server.stop()
    longest = max(upstream.prefilled[1:])
    tenth = max(1, num_turns // 10)
    each = [
        {
            "turn": turn + 1,
            "valid": int(valid[turn]),
            "prompt_tokens": len(upstream.asked[turn].ids),
            "prefilled_tokens": upstream.prefilled[turn],
            "prepare_ms": round(prepared[turn] * 1e3, 3),
            "turn_ms": round(took[turn] * 1e3, 3),
        }
        for turn in range(num_turns)
    ]
    figures = [
        {
            "what": f"{num_turns} turns: calls valid",
            "value": 100 * sum(valid) / num_turns,
            "unit": "%",
        },
        {"what": "reusable tokens reused, gateway", "value": 100 * reused / reusable, "unit": "%"},
        *(
            {
                "what": f"reusable tokens reused, {name}, first {_OTHERS_TURNS} turns",
                "value": 100 * other.reused / other.reusable,
                "unit": "%",
            }
            for name, other in others.items()
        ),
        {"what": "most tokens to prefill in a turn, gateway", "value": longest, "unit": "tokens"},
        *(
            {
                "what": f"most tokens to prefill, {name}, first {_OTHERS_TURNS} turns",
                "value": other.most,
                "unit": "tokens",
            }
            for name, other in others.items()
        ),
        {"what": "prompt of the last turn", "value": len(upstream.asked[-1].ids), "unit": "tokens"},
        {
            "what": "from request to token ids, at the start",
            "value": statistics.median(prepared[1:tenth]) * 1e3,
            "unit": "ms",
        },
        {
            "what": "from request to token ids, at the end",
            "value": statistics.median(prepared[-tenth:]) * 1e3,
            "unit": "ms",
        },
        {
            "what": "a turn at the start (client, gateway, engine)",
            "value": statistics.median(took[1:tenth]) * 1e3,
            "unit": "ms",
        },
        {
            "what": "a turn at the end (client, gateway, engine)",
            "value": statistics.median(took[-tenth:]) * 1e3,
            "unit": "ms",
        },
    ]
    return figures, each


def plot(turns: list[dict[str, Any]], path: Path) -> None:
    """Valid calls, tokens to prefill and time against the turn."""
    import matplotlib.pyplot as plt

    figure, (left, middle, right) = plt.subplots(1, 3, figsize=(14, 4))
    number = [row["turn"] for row in turns]
    seen = [sum(row["valid"] for row in turns[: n + 1]) / (n + 1) for n in range(len(turns))]
    left.plot(number, seen)
    left.set(xlabel="turn", ylabel="share of turns with valid calls so far", ylim=(0, 1.05))
    middle.plot(number, [row["prompt_tokens"] for row in turns], label="prompt")
    middle.plot(number, [row["prefilled_tokens"] for row in turns], label="to prefill")
    middle.set(xlabel="turn", ylabel="tokens", yscale="log")
    middle.legend()
    right.plot(number, [row["turn_ms"] for row in turns], label="client, gateway and engine")
    right.plot(number, [row["prepare_ms"] for row in turns], label="from request to token ids")
    right.set(xlabel="turn", ylabel="processor time, ms", ylim=(0, None))
    right.legend()
    figure.tight_layout()
    figure.savefig(path)
    print(f"wrote {path}")


def look_up(num_turns: int) -> list[dict[str, Any]]:
    """Time to find one turn among many, in a file."""
    tokenizer = Tokenizer.from_file(str(nano_dir() / "tokenizer.json"))
    encoder = Encoder()
    prompt: Prompt = encoder.encode([{"role": "user", "content": "x"}], tools=TOOLS, effort="low")
    ids = encoder_for(tokenizer).encode(segments_of(spoken(1)))
    turn = prompt.parser(tokenizer=tokenizer)
    turn.feed(ids)
    read = turn.finish("stop")
    with (
        tempfile.TemporaryDirectory() as folder,
        ReplayStore(Path(folder) / "turns.db", max_bytes=1 << 40) as store,
    ):
        for number in range(num_turns):
            for place, call in enumerate(read.tool_calls):
                call.id = f"call_{place:02d}_{number:024d}"
            store.remember(prompt, ids, read, tokenizer)
        draw, times = random.Random(0), []
        for _ in range(2_000):
            number = draw.randrange(num_turns)
            message = Message(
                Role.ASSISTANT,
                content=read.content,
                calls=[
                    ToolCall(f"call_{n:02d}_{number:024d}", c.name, c.arguments)
                    for n, c in enumerate(read.tool_calls)
                ],
            )
            started = time.perf_counter()
            (found,) = store.restore([message])
            times.append(time.perf_counter() - started)
            assert found.replay is not None, "it is there"
    name = f"look-up among {num_turns:,} turns"
    return [
        {"what": f"{name}, median", "value": statistics.median(times) * 1e3, "unit": "ms"},
        {"what": f"{name}, 99th", "value": sorted(times)[1980] * 1e3, "unit": "ms"},
    ]


async def main() -> None:
    """Measure everything and write it down."""
    # The others are sent histories without reasoning, and the encoder says so at every turn.
    logging.getLogger("baleen.protocol").setLevel(logging.ERROR)
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--short", action="store_true")
    short = parser.parse_args().short
    rows, turns = await trajectory(60 if short else 500)
    rows += look_up(2_000 if short else 100_000)
    for row in rows:
        print(f"{row['what']:60} {row['value']:12.4f} {row['unit']}")
    if not short:
        write_results("gateway_trajectory", rows)
        write_results("gateway_trajectory_turns", turns)
        plot(turns, FOLDER / "gateway_trajectory_turns.png")


if __name__ == "__main__":
    asyncio.run(main())
