"""Dockerfile text to instructions: continuations, comments, directives, here-documents."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass, field
from typing import Any

from ..errors import BuildError

INSTRUCTIONS = (
    "FROM",
    "RUN",
    "COPY",
    "ADD",
    "ENV",
    "ARG",
    "WORKDIR",
    "USER",
    "ENTRYPOINT",
    "CMD",
    "LABEL",
    "SHELL",
    "EXPOSE",
    "VOLUME",
    "HEALTHCHECK",
    "STOPSIGNAL",
    "ONBUILD",
    "MAINTAINER",
)
_HEREDOC_IN = ("RUN", "COPY", "ADD")
_DIRECTIVE = re.compile(r"#\s*(\w+)\s*=\s*(\S+)\s*$")
_HEREDOC = re.compile(r"""(?<!<)<<(-?)(["']?)([A-Za-z_][\w.]*)\2""")
_FLAG = re.compile(r"--([a-z][a-z-]*)(?:=(\S*))?(?:\s+|$)")


@dataclass(frozen=True)
class Heredoc:
    """A text given in place: of a command its input, of a copy a file."""

    name: str
    text: str
    expand: bool
    """Variables in it are replaced; not where its name was quoted."""


@dataclass(frozen=True)
class Instruction:
    """One instruction and where it stands."""

    name: str
    rest: str
    """What follows name and flags, continuation lines joined."""
    line: int
    flags: dict[str, str] = field(default_factory=dict)
    heredocs: tuple[Heredoc, ...] = ()
    source: str = "Dockerfile"

    def fail(self, text: str, *, remedy: str | None = None, output: str = "") -> BuildError:
        """An error that names file and line."""
        return BuildError(
            f"{self.source}:{self.line}: {self.name}: {text}",
            remedy=remedy,
            line=self.line,
            output=output,
        )

    def json_list(self) -> list[str] | None:
        """The words of the JSON form, None where it is the shell form."""
        if not self.rest.startswith("["):
            return None
        try:
            found: Any = json.loads(self.rest)
        except ValueError:
            return None
        if isinstance(found, list) and all(isinstance(word, str) for word in found):
            return found
        return None


@dataclass(frozen=True)
class Dockerfile:
    """A parsed file."""

    instructions: tuple[Instruction, ...]
    escape: str = "\\"


def parse(text: str, source: str = "Dockerfile") -> Dockerfile:
    """Parses a Dockerfile.

    Raises:
        BuildError: names file and line.
    """
    lines = text.removeprefix("\ufeff").replace("\r\n", "\n").split("\n")
    escape = _escape_of(lines, source)
    instructions = []
    at = 0
    while at < len(lines):
        if not lines[at].strip() or lines[at].lstrip().startswith("#"):
            at += 1
            continue
        first = at + 1
        logical, at = _joined(lines, at, escape)
        instruction, at = _instruction(logical, first, lines, at, source)
        instructions.append(instruction)
    if not any(x.name == "FROM" for x in instructions):
        raise BuildError(f"{source}: no FROM", remedy="begin with FROM scratch, host or an image")
    return Dockerfile(tuple(instructions), escape)


def _escape_of(lines: list[str], source: str) -> str:
    """The escape character, from the directives at the top."""
    for number, line in enumerate(lines, 1):
        found = _DIRECTIVE.match(line.strip())
        if not found:
            break
        if found[1].lower() == "escape":
            if found[2] not in ("\\", "`"):
                raise BuildError(
                    f"{source}:{number}: escape={found[2]} must be \\ or `", line=number
                )
            return found[2]
    return "\\"


def _joined(lines: list[str], at: int, escape: str) -> tuple[str, int]:
    """A logical line, comments and blank lines within it left out, and where the next begins."""
    parts: list[str] = []
    while at < len(lines):
        line = lines[at]
        at += 1
        if parts and (not line.strip() or line.lstrip().startswith("#")):
            continue
        stripped = line.rstrip()
        if stripped.endswith(escape) and not stripped.endswith(escape * 2):
            parts.append(stripped[:-1])
            continue
        parts.append(line)
        break
    return "".join(parts).strip(), at


def _instruction(
    logical: str, first: int, lines: list[str], at: int, source: str
) -> tuple[Instruction, int]:
    word, _, rest = logical.partition(" ") if " " in logical else (*logical.partition("\t"),)
    name = word.upper()
    bare = Instruction(name, "", first, source=source)
    if name not in INSTRUCTIONS:
        raise bare.fail("unknown instruction", remedy=f"one of {', '.join(INSTRUCTIONS)}")
    rest = rest.strip()
    flags = {}
    while name != "ONBUILD" and (found := _FLAG.match(rest)):
        flags[found[1]] = found[2] if found[2] is not None else "true"
        rest = rest[found.end() :]
    heredocs: list[Heredoc] = []
    if name in _HEREDOC_IN and not rest.startswith("["):
        for mark in _HEREDOC.finditer(rest):
            body, at = _body(lines, at, mark[3], mark[1] == "-", bare)
            heredocs.append(Heredoc(mark[3], body, not mark[2]))
    if not rest and name != "RUN":
        raise bare.fail("nothing follows")
    return Instruction(name, rest, first, flags, tuple(heredocs), source), at


def _body(
    lines: list[str], at: int, name: str, strip_tabs: bool, where: Instruction
) -> tuple[str, int]:
    body: list[str] = []
    while at < len(lines):
        line = lines[at].lstrip("\t") if strip_tabs else lines[at]
        at += 1
        if line == name:
            return "".join(f"{x}\n" for x in body), at
        body.append(line)
    raise where.fail(f"the here-document <<{name} does not end")


def without_marks(rest: str) -> str:
    """An instruction's text without the marks of its here-documents."""
    return _HEREDOC.sub(" ", rest).strip()
