"""The attention state of a run on disk: saved after each turn, used only if it fits.

The engine's file holds the state with its token ids; a line beside it says which model made it. A
state that belongs to another model, or whose tokens are not the beginning of the recorded context,
is not used: the context is then computed again from the record, which is slower and just as right.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

from baleen.agent.run_folder import read_json, write_json
from baleen.errors import BaleenError, RunError

if TYPE_CHECKING:
    from baleen.engine import Session


def save(session: Session, path: Path, policy: str) -> None:
    """Keep the state of a session for a later process."""
    label = _label(path)
    label.unlink(missing_ok=True)  # never a new state under an old label
    session.save(path)
    write_json(label, {"version": 1, "policy": policy, "num_tokens": len(session.token_ids)})


def restore(session: Session, path: Path, policy: str, context_ids: Sequence[int]) -> int:
    """Load a state into a fresh session if it fits; returns how many tokens it covers.

    A session that loaded a state which then proved not to fit is reset by the engine on its next
    use, because it keeps only the common beginning of its tokens and the prompt.
    """
    try:
        label = read_json(_label(path))
    except RunError:
        return 0
    if label.get("version") != 1 or label.get("policy") != policy:
        return 0
    with suppress(BaleenError, OSError):
        session.load(path)
    return _common(session.token_ids, context_ids)


def _label(path: Path) -> Path:
    return path.with_name(f"{path.name}.json")


def _common(left: Sequence[int], right: Sequence[int]) -> int:
    count = 0
    for a, b in zip(left, right, strict=False):
        if a != b:
            break
        count += 1
    return count
