"""Random model outputs against the parser's promises.

    python benchmarks/protocol_output_fuzz.py --outputs 1000000

Each output is a random run of fragments of the markup, of text that resembles it, and of values. It
is read in one piece, in its fragments, and (one in ten) character by character. There must be no
exception, no difference, no marker in the text, and no call whose arguments are not a JSON object.
The checks are those of ``tests/protocol/test_parser_fuzz.py``.
"""

from __future__ import annotations

import argparse
import random
import sys
import time
from collections import Counter

from by_path import load_module


def main() -> int:
    arguments = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    arguments.add_argument("--outputs", type=int, default=1_000_000)
    arguments.add_argument("--seed", type=int, default=0)
    wanted = arguments.parse_args()
    checks, dice = load_module("tests/protocol/test_parser_fuzz.py"), random.Random(wanted.seed)
    outcomes: Counter[str] = Counter()
    started = time.monotonic()
    for number in range(wanted.outputs):
        fragments = dice.choices(checks.FRAGMENTS, k=dice.randint(0, 24))
        options = {
            "thinking": dice.random() < 0.5,
            "start": dice.choice((None, None, None, "reasoning", "content", "calls")),
            "calls": dice.random() < 0.9,
            "repair": dice.choice(("off", "schema", "all")),
            "tools": dice.choice((None, checks.TOOLS)),
        }
        reason = dice.choice(("stop", "length"))
        text = "".join(fragments)
        turn, events = checks.read([text], reason, options)
        checks.check(turn, calls=options["calls"], in_text=True)
        cuts = [fragments, list(text)] if number % 10 == 0 else [fragments]
        for pieces in cuts:
            other, other_events = checks.read(pieces, reason, options)
            if other != turn or checks.joined(other_events) != checks.joined(events):
                print(repr(text), options, reason, turn, other, sep="\n")
                return 1
        outcomes[f"finished with {turn.finish_reason}"] += 1
        outcomes["calls"] += len(turn.tool_calls)
        outcomes["calls cut off"] += len(turn.incomplete_calls)
        outcomes["outputs with repairs"] += bool(turn.repairs)
    print(f"{wanted.outputs} outputs in {time.monotonic() - started:.0f} s, no promise broken")
    for what, count in sorted(outcomes.items()):
        print(f"{count:10d}  {what}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
