"""The places in a turn that a machine distinguishes."""

from enum import StrEnum


class Place(StrEnum):
    """Where in a turn the machine is."""

    REASONING = "reasoning"
    CONTENT = "content"
    BLOCK = "block"
    """Inside a block, between invocations."""
    INVOKE = "invoke"
    """Inside an invocation, between parameters."""
    VALUE = "value"
    AFTER = "after"
    """Behind a block; another one may follow, text is dropped."""
    ENDED = "ended"
    """Behind the end-of-sentence token."""
