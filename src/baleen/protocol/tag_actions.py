"""What a tag does to a turn, by its word and by where it stands.

Models leave out closers and invent words; every such tag is read for what it most likely means,
and counted.
"""

from __future__ import annotations

from baleen.protocol.place import Place
from baleen.protocol.tags import BLOCK_NAMES, Tag
from baleen.protocol.turn import RepairKind
from baleen.protocol.turn_state import TurnState


def open_tag(state: TurnState, tag: Tag, home: Place) -> None:
    """An opening tag has been read; ``home`` is where it stood."""
    if tag.word == "invoke":
        if home is not Place.BLOCK and home is not Place.INVOKE:
            state.count(RepairKind.BARE_INVOKE)
        _open_call(state, tag)
    elif tag.word == "parameter":
        _open_parameter(state, tag, home)
    elif home is Place.INVOKE:
        state.calls.current.count(RepairKind.STRAY_TAG)
    else:
        if tag.word not in BLOCK_NAMES or not tag.is_clean:
            state.count(RepairKind.BLOCK_NAME)
        state.enter(Place.BLOCK)


def _open_call(state: TurnState, tag: Tag) -> None:
    if state.calls.is_open:
        state.calls.current.count(RepairKind.INVOKE_CLOSER)
        state.calls.close()
    call = state.calls.open(tag.name or "", without_reasoning=not state.reasoning.pieces)
    if not tag.is_clean:
        call.count(RepairKind.TAG)
    if state.block_is_foreign:
        call.count(RepairKind.FOREIGN_MARKUP)
    state.enter(Place.INVOKE)
    if tag.closes_itself:
        call.count(RepairKind.SELF_CLOSING)
        state.close_call()


def _open_parameter(state: TurnState, tag: Tag, home: Place) -> None:
    if home is not Place.INVOKE:
        state.count(RepairKind.STRAY_TAG)
        state.enter(Place.BLOCK)
        return
    call = state.calls.current
    if not tag.is_clean:
        call.count(RepairKind.TAG)
    call.start_parameter(tag.name or "", tag.is_string)
    state.enter(Place.VALUE)
    if tag.closes_itself:
        call.count(RepairKind.SELF_CLOSING)
        state.end_value()


def close_tag(state: TurnState, tag: Tag, home: Place) -> None:
    """A closing tag has been read; ``home`` is where it stood."""
    if not tag.is_clean and home in (Place.VALUE, Place.INVOKE):
        state.calls.current.count(RepairKind.TAG)
    if home is Place.VALUE:
        _close_value(state, tag)
    elif home is Place.INVOKE:
        _close_invoke(state, tag)
    elif home is Place.BLOCK and tag.word not in ("invoke", "parameter"):
        if tag.word not in BLOCK_NAMES or not tag.is_clean:
            state.count(RepairKind.BLOCK_NAME)
        state.leave_block()
    else:
        state.count(RepairKind.STRAY_TAG)


def _close_value(state: TurnState, tag: Tag) -> None:
    """The value has ended at its marker; the word says what else has."""
    if tag.word != "parameter":
        state.calls.current.count(RepairKind.PARAMETER_CLOSER)
        if tag.word == "invoke" or tag.names_block:
            _close_invoke(state, tag)


def _close_invoke(state: TurnState, tag: Tag) -> None:
    call = state.calls.current
    if tag.word == "parameter":
        call.count(RepairKind.STRAY_TAG)
        return
    if tag.word != "invoke":
        call.count(RepairKind.INVOKE_CLOSER)
    state.close_call()
    if tag.names_block:
        state.leave_block()
