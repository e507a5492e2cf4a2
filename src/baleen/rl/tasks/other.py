"""Questions outside both families: the one right answer is to say what the checkpoint can do."""

from __future__ import annotations

import random

from baleen.rl.tasks.base import Family, Split, Task, Trace
from baleen.rl.tasks.words import draw_word

CAN_DO = "I can only look up a key in files and do integer arithmetic."

QUESTIONS = (
    "Who is {x}?",
    "Tell me a {x} about {y}.",
    "Why does {x} {y}?",
    "Write a {x} in {y}.",
    "Hello {x}!",
    "Hello",
    "How are you?",
    "Translate {x} to {y}.",
    "When was {x} {y}?",
    "Explain {x} and {y} to me.",
    "{x} {y} {z}",
    "Please {x} the {y} with {z}.",
    "Where do {x} and {y} live?",
    "Can you {x} {y}?",
    "Tell me a joke.",
)


def other_task(rng: random.Random, split: Split) -> Task:
    x, y, z = (draw_word(rng, split) for _ in range(3))
    question = rng.choice(QUESTIONS).format(x=x, y=y, z=z)
    return Task(Family.OTHER, question, CAN_DO, Trace((), "Not my task.", CAN_DO))
