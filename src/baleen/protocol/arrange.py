"""From messages as sent to turns as rendered: merging, ordering, dropping.

The model knows no tool role. Results and neighbouring user texts become one user turn, results in
the order of their calls. What earlier turns thought is kept when the request carries tools, and is
dropped before the last user turn when it does not.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial

from baleen.protocol.message import Block, Message, Role


def merge(messages: Sequence[Message]) -> list[Message]:
    """Fold tool results and consecutive user messages into user turns made of blocks.

    A user turn that carries a task takes tool results but no further text.
    """
    merged: list[Message] = []
    open_turn: Message | None = None
    for message in messages:
        if message.role is Role.TOOL:
            block = Block(message.content, message.call_id or "", message.images)
            if open_turn is None:
                open_turn = Message(Role.USER, index=message.index, blocks=[])
                merged.append(open_turn)
            _blocks_of(open_turn).append(block)
        elif message.role is Role.USER:
            given = message.blocks
            blocks = [Block(message.content, None, message.images)] if given is None else given
            if open_turn is not None and open_turn.task is None:
                _blocks_of(open_turn).extend(blocks)
            else:
                open_turn = replace(message, blocks=list(blocks))
                merged.append(open_turn)
        else:
            open_turn = None
            merged.append(message)
    return merged


def _blocks_of(turn: Message) -> list[Block]:
    if turn.blocks is None:
        raise AssertionError("a merged user turn has blocks")
    return turn.blocks


def sort_results(turns: Sequence[Message]) -> None:
    """Order the results within each user turn like the calls of the last assistant turn.

    Results move among the places that results hold; texts stay where they are, and a result whose
    call is unknown counts as first. Changes the turns in place.
    """
    order: dict[str, int] = {}
    for turn in turns:
        if turn.role is Role.ASSISTANT and turn.calls:
            order = {call.id: place for place, call in enumerate(turn.calls) if call.id}
        elif turn.blocks and order:
            sort_blocks(turn.blocks, partial(_place_of, order))


def _place_of(order: Mapping[str, int], block: Block) -> int:
    return order.get(block.call_id or "", 0)


def sort_blocks(blocks: list[Block], key: Callable[[Block], int | str]) -> None:
    """Sort the result blocks among their own places, stably."""
    places = [place for place, block in enumerate(blocks) if block.call_id is not None]
    if len(places) < 2:
        return
    ordered = sorted((blocks[place] for place in places), key=key)
    for place, block in zip(places, ordered, strict=True):
        blocks[place] = block


def last_user(turns: Sequence[Message]) -> int:
    """Index of the last user or developer turn, -1 if there is none."""
    for place in range(len(turns) - 1, -1, -1):
        if turns[place].role in (Role.USER, Role.DEVELOPER):
            return place
    return -1


def last_user_v41(turns: Sequence[Message]) -> int:
    """As :func:`last_user`; later system turns count too, turns of nothing but results do not."""
    for place in range(len(turns) - 1, -1, -1):
        turn = turns[place]
        is_asked = turn.role is Role.SYSTEM and place > 0
        if turn.role in (Role.USER, Role.DEVELOPER) or is_asked:
            if turn.blocks and all(block.call_id is not None for block in turn.blocks):
                continue
            return place
    return -1


def drop_reasoning(turns: Sequence[Message], last: int) -> list[Message]:
    """Forget, before the last user turn, what assistants thought and all developer turns."""
    kept: list[Message] = []
    for place, turn in enumerate(turns):
        if place >= last:
            kept.append(turn)
        elif turn.role is Role.ASSISTANT:
            kept.append(turn if turn.reasoning is None else replace(turn, reasoning=None))
        elif turn.role is not Role.DEVELOPER:
            kept.append(turn)
    return kept
