"""Instructions that change only the config: each gives the fields of it that change."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from typing import Any

from ..base import Config
from .parser import INSTRUCTIONS, Instruction

Changes = dict[str, Any]
_DURATION = re.compile(r"(\d+(?:\.\d+)?)(ns|us|ms|s|m|h)")
_SECONDS = {"ns": 1e-9, "us": 1e-6, "ms": 1e-3, "s": 1.0, "m": 60.0, "h": 3600.0}


def _pairs(step: Instruction, words: Sequence[str]) -> dict[str, str]:
    """``a=1 b=2``, or the old ``a 1 2`` that sets one."""
    if words and "=" not in words[0]:
        if len(words) < 2:
            raise step.fail(f"{words[0]!r} has no value", remedy="NAME=VALUE")
        return {words[0]: " ".join(words[1:])}
    for word in words:
        if "=" not in word or word.startswith("="):
            raise step.fail(f"{word!r} is not NAME=VALUE")
    return dict(word.split("=", 1) for word in words)


def _env(step: Instruction, config: Config, words: Sequence[str]) -> Changes:
    return {"env": {**config.env, **_pairs(step, words)}}


def _label(step: Instruction, config: Config, words: Sequence[str]) -> Changes:
    return {"labels": {**config.labels, **_pairs(step, words)}}


def _maintainer(step: Instruction, config: Config, words: Sequence[str]) -> Changes:
    return {"labels": {**config.labels, "maintainer": step.rest}}


def _user(step: Instruction, config: Config, words: Sequence[str]) -> Changes:
    if len(words) != 1:
        raise step.fail(f"{step.rest!r} is not USER[:GROUP]")
    return {"user": words[0]}


def _command(step: Instruction, config: Config, words: Sequence[str]) -> tuple[str, ...]:
    found = step.json_list()
    return tuple(found) if found is not None else (*config.shell, step.rest)


def _cmd(step: Instruction, config: Config, words: Sequence[str]) -> Changes:
    return {"cmd": _command(step, config, words)}


def _entrypoint(step: Instruction, config: Config, words: Sequence[str]) -> Changes:
    return {"entrypoint": _command(step, config, words)}


def _shell(step: Instruction, config: Config, words: Sequence[str]) -> Changes:
    if not words:
        raise step.fail('takes the JSON form only, e.g. ["/bin/bash", "-c"]')
    return {"shell": tuple(words)}


def _expose(step: Instruction, config: Config, words: Sequence[str]) -> Changes:
    ports = []
    for word in words:
        port, _, protocol = word.partition("/")
        first, dash, last = port.partition("-")
        fits = first.isdigit() and (not dash or last.isdigit())
        if not fits or protocol not in ("", "tcp", "udp", "sctp"):
            raise step.fail(f"{word!r} is not PORT[/PROTOCOL]")
        ports.append(f"{port}/{protocol or 'tcp'}")
    return {"exposed": tuple(dict.fromkeys((*config.exposed, *ports)))}


def _volume(step: Instruction, config: Config, words: Sequence[str]) -> Changes:
    return {"volumes": tuple(dict.fromkeys((*config.volumes, *words)))}


def _stop_signal(step: Instruction, config: Config, words: Sequence[str]) -> Changes:
    return {"stop_signal": words[0]}


def _health(step: Instruction, config: Config, words: Sequence[str]) -> Changes:
    kind, _, rest = step.rest.partition(" ")
    if kind.upper() == "NONE" and not rest:
        return {"healthcheck": {"Test": ["NONE"]}}
    if kind.upper() != "CMD" or not rest.strip():
        raise step.fail("takes CMD and a command, or NONE")
    command = Instruction("CMD", rest.strip(), step.line, source=step.source)
    found = command.json_list()
    test = ["CMD", *found] if found is not None else ["CMD-SHELL", command.rest]
    check: dict[str, Any] = {"Test": test}
    for flag, name in (
        ("interval", "Interval"),
        ("timeout", "Timeout"),
        ("start-period", "StartPeriod"),
        ("start-interval", "StartInterval"),
    ):
        if flag in step.flags:
            check[name] = _nanoseconds(step, step.flags[flag])
    if "retries" in step.flags:
        if not step.flags["retries"].isdigit():
            raise step.fail(f"--retries={step.flags['retries']} is not a number")
        check["Retries"] = int(step.flags["retries"])
    return {"healthcheck": check}


def _nanoseconds(step: Instruction, text: str) -> int:
    parts = _DURATION.findall(text)
    if not parts or "".join(number + unit for number, unit in parts) != text:
        raise step.fail(f"{text!r} is not a duration", remedy="e.g. 30s or 1m30s")
    return round(sum(float(number) * _SECONDS[unit] for number, unit in parts) * 1e9)


def _on_build(step: Instruction, config: Config, words: Sequence[str]) -> Changes:
    inner = step.rest.split()[0].upper()
    if inner in ("ONBUILD", "FROM", "MAINTAINER") or inner not in INSTRUCTIONS:
        raise step.fail(f"{inner} cannot be a trigger")
    return {"on_build": (*config.on_build, step.rest)}


METADATA: dict[str, Callable[[Instruction, Config, Sequence[str]], Changes]] = {
    "ENV": _env,
    "LABEL": _label,
    "MAINTAINER": _maintainer,
    "USER": _user,
    "CMD": _cmd,
    "ENTRYPOINT": _entrypoint,
    "SHELL": _shell,
    "EXPOSE": _expose,
    "VOLUME": _volume,
    "STOPSIGNAL": _stop_signal,
    "HEALTHCHECK": _health,
    "ONBUILD": _on_build,
}
