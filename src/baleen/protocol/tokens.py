"""The special tokens of DeepSeek-V4, by the one spelling each has.

Every bar is U+FF5C and the blocks inside BOS and EOS are U+2581; the rest is ASCII. Ids are never
written down here: they belong to a tokenizer file and are looked up there.
"""

from __future__ import annotations

from typing import Final

BOS: Final = "<｜begin▁of▁sentence｜>"
EOS: Final = "<｜end▁of▁sentence｜>"
USER: Final = "<｜User｜>"
ASSISTANT: Final = "<｜Assistant｜>"
REMINDER: Final = "<｜latest_reminder｜>"
SYSTEM: Final = "<｜System｜>"
"""Opens system turns from V4.1 on; earlier revisions write system text bare."""
THINK_OPEN: Final = "<think>"
THINK_CLOSE: Final = "</think>"
DSML: Final = "｜DSML｜"
"""The only token of a tool-call tag; the angle brackets and names around it are ordinary text."""
IMAGE: Final = "<｜image｜>"
IMAGE_VISION_EXP: Final = "<｜deepseek_image｜>"
EXTRACTED_URL: Final = "<｜extracted_url｜>"

TASKS: Final = {
    "action": "<｜action｜>",
    "query": "<｜query｜>",
    "authority": "<｜authority｜>",
    "domain": "<｜domain｜>",
    "title": "<｜title｜>",
    "read_url": "<｜read_url｜>",
}
"""Quick-instruction tasks and the token that asks for each."""

ALL: Final = (
    BOS,
    EOS,
    USER,
    ASSISTANT,
    REMINDER,
    SYSTEM,
    THINK_OPEN,
    THINK_CLOSE,
    DSML,
    IMAGE,
    IMAGE_VISION_EXP,
    EXTRACTED_URL,
    *TASKS.values(),
)
"""Every spelling that only the encoder may turn into a control token."""
