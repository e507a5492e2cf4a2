"""The file editor: view, create, str_replace and insert, done by commands in the box.

A change is two commands, a read and a write, each recorded under its own key. The new text is
computed here from what the read returned, so a resumed run computes the same text and the write
is recognised as the one that was made.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from io import StringIO
from typing import Any

from baleen.agent.observation import cut
from baleen.agent.tools import (
    CommandResult,
    Commands,
    Observation,
    ToolInputError,
    shown,
    text_argument,
)

EDIT_TOOL: Mapping[str, Any] = {
    "type": "function",
    "function": {
        "name": "edit",
        "description": (
            "View and change text files. view shows a file with line numbers, or lists a folder; "
            "create writes file_text to a new or existing file; str_replace replaces the only "
            "occurrence of old_str by new_str; insert puts new_str after line insert_line."
        ),
        "parameters": {
            "type": "object",
            "properties": {
                "command": {"type": "string", "enum": ["view", "create", "str_replace", "insert"]},
                "path": {"type": "string", "description": "File or folder."},
                "file_text": {"type": "string", "description": "For create: the whole file."},
                "old_str": {"type": "string", "description": "For str_replace: must occur once."},
                "new_str": {"type": "string", "description": "For str_replace and insert."},
                "insert_line": {"type": "integer", "description": "For insert: 0 is the top."},
                "view_range": {
                    "type": "array",
                    "items": {"type": "integer"},
                    "description": "For view: first and last line; -1 is the end.",
                },
            },
            "required": ["command", "path"],
        },
    },
}

_READ = 'if [ -d "$1" ]; then ls -lA -- "$1"; exit 100; else exec cat -- "$1"; fi'
_IS_FOLDER = 100
# Written beside the file and renamed over it: a reader sees the old text or the new one. A file
# keeps its mode; the link that a path may be is followed, not replaced.
_WRITE = (
    'set -e; p=$(readlink -m -- "$1"); mkdir -p -- "$(dirname -- "$p")"; '
    't=$(mktemp -- "$p.XXXXXX"); '
    'trap \'rm -f -- "$t"\' EXIT; cat > "$t"; '
    'if [ -e "$p" ]; then chmod --reference="$p" -- "$t"; else chmod 644 -- "$t"; fi; '
    'mv -f -- "$t" "$p"'
)


class Editor:
    """Reads and changes files in the box."""

    schema = EDIT_TOOL

    async def execute(
        self, arguments: Mapping[str, Any], commands: Commands, limit_chars: int
    ) -> Observation:
        """Do what `arguments["command"]` names."""
        path = text_argument(arguments, "path")
        match arguments["command"]:
            case "view":
                return await _view(path, arguments.get("view_range"), commands, limit_chars)
            case "create":
                return await _write(path, text_argument(arguments, "file_text"), commands)
            case "str_replace":
                old = text_argument(arguments, "old_str")
                new = text_argument({"new_str": "", **arguments}, "new_str")
                return await _change(path, commands, lambda text: replace_once(text, old, new))
            case "insert":
                new, line = text_argument(arguments, "new_str"), arguments.get("insert_line")
                return await _change(path, commands, lambda text: insert_after(text, line, new))
            case other:
                raise ToolInputError(f"there is no command {other!r}")


def replace_once(text: str, old: str, new: str) -> str:
    """Replace the only occurrence of `old`."""
    if not old:
        raise ToolInputError("'old_str' is empty")
    count = text.count(old)
    if count != 1:
        raise ToolInputError(f"'old_str' occurs {count} times in the file; it must occur once")
    return text.replace(old, new)


def insert_after(text: str, line: Any, new: str) -> str:
    """Put `new` on lines of its own after line `line`; 0 is the top."""
    lines = _lines(text)
    if not isinstance(line, int) or isinstance(line, bool) or not 0 <= line <= len(lines):
        raise ToolInputError(f"'insert_line' must be a number from 0 to {len(lines)}")
    before = "".join(lines[:line])
    if before and not before.endswith("\n"):
        before += "\n"
    return before + new.removesuffix("\n") + "\n" + "".join(lines[line:])


def numbered(text: str, view_range: Any) -> str:
    """The lines of a text with their numbers, all of them or a range."""
    lines = _lines(text)
    first, last = _range(view_range, len(lines))
    shown_lines = enumerate(lines[first - 1 : last], first)
    return "".join(f"{number:6}\t{line}" for number, line in shown_lines).removesuffix("\n")


def _lines(text: str) -> list[str]:
    """Lines as sed and grep count them: str.splitlines would also split at form feeds."""
    return StringIO(text, newline="\n").readlines()


def _range(view_range: Any, num_lines: int) -> tuple[int, int]:
    if view_range is None:
        return 1, num_lines
    if not (
        isinstance(view_range, list)
        and len(view_range) == 2
        and all(isinstance(bound, int) for bound in view_range)
    ):
        raise ToolInputError("'view_range' must be two numbers")
    first, last = view_range
    last = num_lines if last == -1 else last
    if not 1 <= first <= last:
        raise ToolInputError(f"'view_range' must lie within 1 and {num_lines}")
    return first, last


async def _view(path: str, view_range: Any, commands: Commands, limit_chars: int) -> Observation:
    result = await commands.run(["sh", "-c", _READ, "sh", path], part="read")
    if result.exit_code == _IS_FOLDER:
        return Observation(cut(result.stdout.decode(errors="replace").rstrip("\n"), limit_chars), 0)
    if result.exit_code != 0:
        return shown(result, limit_chars)
    return Observation(cut(numbered(_text(result, path), view_range), limit_chars) or "[empty]", 0)


async def _change(path: str, commands: Commands, change: Callable[[str], str]) -> Observation:
    result = await commands.run(["sh", "-c", _READ, "sh", path], part="read")
    if result.exit_code == _IS_FOLDER:
        raise ToolInputError(f"{path} is a folder")
    if result.exit_code != 0:
        return shown(result, 2000)
    return await _write(path, change(_text(result, path)), commands)


async def _write(path: str, text: str, commands: Commands) -> Observation:
    result = await commands.run(["sh", "-c", _WRITE, "sh", path], part="write", stdin=text.encode())
    if result.exit_code != 0:
        return shown(result, 2000)
    return Observation(f"[wrote {path}: {len(_lines(text))} lines]", 0)


def _text(result: CommandResult, path: str) -> str:
    if result.truncated:
        raise ToolInputError(f"{path} is too large for the editor; use bash")
    try:
        return result.stdout.decode("utf-8")
    except UnicodeDecodeError:
        raise ToolInputError(f"{path} is not UTF-8 text; use bash") from None
