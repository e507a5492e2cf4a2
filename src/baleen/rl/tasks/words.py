"""Words, keys and values that tasks are made of, drawn so that no split sees another's."""

from __future__ import annotations

import random
import string
from collections.abc import Callable

from baleen.rl.tasks.base import Split

SERVICES = [
    "staging",
    "production",
    "billing",
    "checkout",
    "search",
    "mailer",
    "gateway",
    "cache",
    "worker",
    "frontend",
    "backend",
    "metrics",
    "auth",
    "login",
    "orders",
    "inventory",
    "shipping",
    "payments",
    "reports",
    "scheduler",
    "crawler",
    "indexer",
    "uploader",
    "archive",
    "backup",
    "proxy",
    "broker",
    "queue",
    "session",
    "profile",
    "catalog",
    "ledger",
    "invoice",
    "support",
    "chat",
    "video",
    "audio",
    "images",
    "maps",
    "weather",
    "news",
    "ads",
    "tracker",
    "monitor",
    "alerts",
    "deploy",
    "build",
    "release",
    "canary",
    "sandbox",
    "testing",
    "demo",
    "internal",
    "public",
    "mobile",
    "desktop",
    "android",
    "web",
    "api",
    "graph",
    "stream",
    "batch",
    "events",
    "audit",
    "vault",
    "registry",
]

KEYS = [
    "port",
    "host",
    "timeout",
    "user",
    "password",
    "database",
    "region",
    "replicas",
    "memory",
    "disk",
    "cpu",
    "level",
    "path",
    "url",
    "domain",
    "retries",
    "interval",
    "limit",
    "size",
    "mode",
    "version",
    "owner",
    "token",
    "secret",
    "address",
    "mirror",
    "bucket",
    "prefix",
    "topic",
    "workers",
    "threads",
    "format",
    "locale",
    "zone",
    "schema",
    "driver",
    "pool",
    "backlog",
    "charset",
    "editor",
    "theme",
    "color",
    "engine",
]

_CONSONANTS, _VOWELS = "bcdfghjklmnpqrstvwxyz", "aeiou"


def _syllables(rng: random.Random) -> str:
    parts = [
        rng.choice(_CONSONANTS)
        + rng.choice(_VOWELS)
        + rng.choice(["", "", "n", "r", "s", "l", "t"])
        for _ in range(rng.randint(1, 3))
    ]
    return "".join(parts) + rng.choice(["", "", "k", "d", "x", "m"])


def _letters(rng: random.Random) -> str:
    return "".join(rng.choice(string.ascii_lowercase) for _ in range(rng.randint(3, 8)))


def _invented(rng: random.Random) -> str:
    return _syllables(rng) if rng.random() < 0.65 else _letters(rng)


def _compound(rng: random.Random, base: Callable[[], str]) -> str:
    """Some words carry a number or a second part, as names in configurations do."""
    word = base()
    roll = rng.random()
    if roll < 0.08:
        return f"{word}{rng.randint(1, 99)}"
    if roll < 0.14:
        return f"{word}{rng.choice('-_')}{base()}"
    return word


def _owned(rng: random.Random, split: Split, draw: Callable[[], str]) -> str:
    while True:
        word = draw()
        if len(word) >= 2 and split.owns(word):
            return word


def draw_word(rng: random.Random, split: Split) -> str:
    """What a file is about: a service name, known or invented."""

    def base() -> str:
        return rng.choice(SERVICES) if rng.random() < 0.2 else _invented(rng)

    return _owned(rng, split, lambda: _compound(rng, base))


def draw_key(rng: random.Random, split: Split) -> str:
    """The left side of a setting."""

    def base() -> str:
        return rng.choice(KEYS) if rng.random() < 0.3 else _invented(rng)

    return _owned(rng, split, lambda: _compound(rng, base))


def draw_value(rng: random.Random) -> str:
    """The right side of a setting: numbers, names, hosts, paths, sizes, addresses."""
    number = str(rng.randint(1, 10 ** rng.randint(1, 5)))
    name = _invented(rng)
    return rng.choice(
        [
            number,
            number,
            number,
            name,
            name,
            f"{name}{rng.randint(0, 99)}",
            f"{name}.{_invented(rng)}",
            f"/{name}/{_invented(rng)}",
            f"{rng.randint(1, 999)}{rng.choice(['s', 'ms', 'M', 'GB', '%'])}",
            f"10.{rng.randint(0, 255)}.{rng.randint(0, 255)}.{rng.randint(1, 254)}",
            rng.choice(["true", "false", "on", "off", "yes", "no"]),
            f"{name}-{rng.randint(1, 9)}",
        ]
    )
