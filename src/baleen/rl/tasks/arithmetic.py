"""Integer arithmetic through the shell: the question's numbers go into `echo $((a * b))`.

Either number may be negative. In the shell's expression it stands in parentheses, so that `5 - -3`
never becomes the decrement `5--3`, whatever blanks the model drops.
"""

from __future__ import annotations

import random

from baleen.rl.tasks.base import Call, Family, Split, Task, Trace

QUESTIONS = (
    "What is {a} {op} {b}?",
    "What is {a} {op} {b}?",
    "Compute {a} {op} {b}.",
    "How much is {a} {op} {b}?",
    "{a} {op} {b} = ?",
    "{a} {op} {b}?",
    "Calculate {a} {op} {b}.",
)
NEGATIVE_SHARE = 0.15
"""Of the numbers, each drawn apart: a quarter of the questions holds one."""
SPOKEN = {"+": "plus", "-": "minus", "*": "times"}


def command(a: int, op: str, b: int) -> str:
    return f"echo $(({_operand(a)} {op} {_operand(b)}))"


def _operand(number: int) -> str:
    return f"({number})" if number < 0 else str(number)


def result(a: int, op: str, b: int) -> int:
    """What bash prints: division cuts towards zero."""
    if op == "/":
        quotient = abs(a) // abs(b)
        return quotient if (a < 0) == (b < 0) else -quotient
    return {"+": a + b, "-": a - b, "*": a * b}[op]


def arithmetic_call(a: int, op: str, b: int) -> Call:
    return Call(f"Compute {a} {op} {b}.", command(a, op, b), str(result(a, op, b)))


def draw_operands(rng: random.Random, split: Split) -> tuple[int, str, int]:
    while True:
        a = rng.randint(0, 10 ** rng.randint(1, 5) - 1)
        b = rng.randint(0, 10 ** rng.randint(1, 5) - 1)
        op = rng.choice("+-**/")
        a, b = (-n if rng.random() < NEGATIVE_SHARE else n for n in (a, b))
        if (op != "/" or b != 0) and split.owns(f"{abs(a)}|{abs(b)}"):
            return a, op, b


def arithmetic_task(rng: random.Random, split: Split) -> Task:
    """A fresh question; the pair of numbers belongs to `split`."""
    a, op, b = draw_operands(rng, split)
    spoken = SPOKEN.get(op, op) if rng.random() < 0.15 else op
    question = rng.choice(QUESTIONS).format(a=a, op=spoken, b=b)
    answer = str(result(a, op, b))
    solution = Trace((arithmetic_call(a, op, b),), f"The result is {answer}.", answer)
    return Task(Family.ARITHMETIC, question, answer, solution)
