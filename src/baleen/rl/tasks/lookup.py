"""Look-up: the value of a key in the one file of a folder that mentions a word.

Solved in two commands: `grep -rliw WORD .` names the file, `grep -iw KEY FILE` shows the setting.
Both print little, so the answer is read off a line and not searched in a page.
"""

from __future__ import annotations

import random
import re

from baleen.rl.tasks.base import Call, Family, Split, Task, Trace
from baleen.rl.tasks.words import draw_key, draw_value, draw_word

QUESTIONS = (
    "Which {key} does {word} use?",
    "What is the {key} of {word}?",
    "What {key} does {word} have?",
    "What {key} does {word} use?",
    "Which {key} is set for {word}?",
    "Which {key} has {word}?",
    "Tell me the {key} of {word}.",
    "Find the {key} for {word}.",
    "What is {word}'s {key}?",
    "{key} of {word}?",
)

NOTHING_FOUND = "[exit 1]"
"""What `agent.observation.render` makes of a grep that matches nothing."""


def find_command(word: str) -> str:
    return f"grep -rliw {word} ."


def read_command(key: str, file: str) -> str:
    return f"grep -iw {key} {file}"


def find_call(key: str, word: str, output: str) -> Call:
    return Call(f"Key {key}, word {word}: find the file.", find_command(word), output)


def read_call(key: str, file: str, output: str) -> Call:
    return Call(f"Key {key}, file {file}.", read_command(key, file), output)


def matches(word: str, line: str) -> bool:
    """Whether `grep -iw WORD` prints the line."""
    return re.search(rf"(?<!\w){re.escape(word)}(?!\w)", line, re.IGNORECASE) is not None


def grep(word: str, text: str) -> str:
    """What `grep -iw WORD` prints of a file, as the model is shown it."""
    return "\n".join(line for line in text.splitlines() if matches(word, line)) or NOTHING_FOUND


def lookup_task(rng: random.Random, split: Split) -> Task:
    """A fresh folder and question. In a few, word or key is missing and the answer says so."""
    word, key = draw_word(rng, split), draw_key(rng, split)
    missing = rng.random()
    files, target, value = _folder(rng, split, word, key, has_key=not 0.03 < missing < 0.06)
    question = rng.choice(QUESTIONS).format(key=key, word=word)
    if missing < 0.03:
        del files[target]
        nothing = (find_call(key, word, NOTHING_FOUND),)
        return _task(question, files, nothing, f"No file has {word}.", f"No file mentions {word}.")
    shown = f"./{target}"
    calls = (
        find_call(key, word, shown),
        read_call(key, shown, grep(key, files[target])),
    )
    if value is None:
        return _task(question, files, calls, f"No {key} there.", f"No {key} in {shown}.")
    return _task(question, files, calls, f"{key} is {value}.", value)


def _task(
    question: str, files: dict[str, str], calls: tuple[Call, ...], reasoning: str, answer: str
) -> Task:
    return Task(Family.LOOKUP, question, answer, Trace(calls, reasoning, answer), files)


def _folder(
    rng: random.Random, split: Split, word: str, key: str, has_key: bool
) -> tuple[dict[str, str], str, str | None]:
    """Files of which exactly one mentions `word`; returns them, its name, and the key's value."""
    value = draw_value(rng)
    target = _file_name(rng, split, {})
    lines = _settings(rng, split, {word, key})
    if has_key:
        if rng.random() < 0.12:  # grep shows this line too; the answer is in the other
            lines.append((f"{_fresh_key(rng, split, {word, key})}-{key}", draw_value(rng)))
        lines.append((key, value))
    rng.shuffle(lines)
    files = {target: _write(rng, [(rng.choice(["name", "service", "for"]), word), *lines])}
    for _ in range(rng.randint(1, 4)):
        other = draw_word(rng, split)
        while matches(word, other) or matches(key, other):
            other = draw_word(rng, split)
        settings = [*_settings(rng, split, {word, key}), (key, _unlike(rng, word, key))]
        rng.shuffle(settings)
        files[_file_name(rng, split, files)] = _write(rng, [("name", other), *settings])
    if any(matches(word, text) for name, text in files.items() if name != target):
        return _folder(rng, split, word, key, has_key)
    expected = 2 if any(name.endswith(f"-{key}") for name, _ in lines) else 1
    if has_key and len(grep(key, files[target]).splitlines()) != expected:
        return _folder(rng, split, word, key, has_key)
    if not has_key and grep(key, files[target]) != NOTHING_FOUND:
        return _folder(rng, split, word, key, has_key)
    return files, target, value if has_key else None


def _unlike(rng: random.Random, *words: str) -> str:
    while True:
        value = draw_value(rng)
        if not any(matches(word, value) for word in words):
            return value


def _fresh_key(rng: random.Random, split: Split, taken: set[str]) -> str:
    while True:
        key = draw_key(rng, split)
        if not any(matches(word, key) or matches(key, word) for word in taken):
            return key


def _settings(rng: random.Random, split: Split, taken: set[str]) -> list[tuple[str, str]]:
    return [(_fresh_key(rng, split, taken), _unlike(rng, *taken)) for _ in range(rng.randint(1, 4))]


def _write(rng: random.Random, settings: list[tuple[str, str]]) -> str:
    separator = rng.choice([" = ", " = ", ": ", "="])
    return "".join(f"{key}{separator}{value}\n" for key, value in settings)


def _file_name(rng: random.Random, split: Split, taken: dict[str, str]) -> str:
    while True:
        stem = draw_word(rng, split)
        name = f"{stem}.{rng.choice(['conf', 'conf', 'ini', 'cfg', 'env', 'txt', 'yaml'])}"
        if rng.random() < 0.1:
            name = f"{draw_word(rng, split)}/{name}"
        if name not in taken and not any(p.startswith(f"{name}/") for p in taken):
            return name
