"""What a model is shown of a command that has run: one pure rule for the agent and the trainer.

A model learns to read exactly this text, so a change here changes what a trained checkpoint sees:
raise `REVISION` with it. Exit code 0 is silent, because most commands succeed and every extra token
is paid for on every later turn.
"""

from __future__ import annotations

REVISION = 1
"""Version of the rules below; kept with every checkpoint and every run."""

DEFAULT_LIMIT_CHARS = 16_000
"""About 4,000 tokens: a page of a source file fits, a build log does not flood the context."""

NO_OUTPUT = "[no output]"
TIMED_OUT = "[timed out]"
IN_DOUBT = "[in doubt: the command was started but its result was lost; it was not run again]"
"""Shown for a call that was dispatched and whose result nobody can know any more."""


def render(
    exit_code: int,
    stdout: bytes,
    stderr: bytes,
    *,
    timed_out: bool = False,
    truncated: bool = False,
    limit_chars: int = DEFAULT_LIMIT_CHARS,
) -> str:
    """Turn a command's result into the text of a tool message.

    Standard output comes first, then standard error, each without its trailing newlines; bytes that
    are not UTF-8 become U+FFFD. A non-zero exit code stands in a last line of its own, and so does
    a timeout (instead of the code 124 that it implies). `truncated` says that the sandbox had
    already dropped output before it came here.
    """
    streams = (_text(stdout), _text(stderr))
    body = cut("\n".join(text for text in streams if text), limit_chars)
    notes = []
    if truncated:
        notes.append("[more output was dropped]")
    if timed_out:
        notes.append(TIMED_OUT)
    elif exit_code != 0:
        notes.append(f"[exit {exit_code}]")
    return "\n".join(part for part in (body, *notes) if part) or NO_OUTPUT


def cut(text: str, limit_chars: int) -> str:
    """Keep the first two thirds and the last third of a text that is too long, and say so between.

    The mark itself does not count towards the limit.
    """
    if limit_chars < 1:
        raise ValueError(f"limit_chars is {limit_chars}; it must be at least 1")
    if len(text) <= limit_chars:
        return text
    tail = limit_chars // 3
    head = limit_chars - tail
    mark = f"[{len(text) - limit_chars} characters cut]"
    return "\n".join(part for part in (text[:head], mark, text[len(text) - tail :]) if part)


def _text(stream: bytes) -> str:
    return stream.decode("utf-8", errors="replace").rstrip("\r\n")
