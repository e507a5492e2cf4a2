"""Stop strings: the content ends before the first of them."""

from __future__ import annotations

import re
from collections.abc import Sequence

from baleen.protocol.events import ContentDelta, Event


class StopStrings:
    """Cuts the content of one answer; a tail that may begin a stop string is held back."""

    def __init__(self, stops: Sequence[str]) -> None:
        self._pattern = re.compile("|".join(map(re.escape, sorted(stops, key=len, reverse=True))))
        self._stops = tuple(stops)
        self._longest = max(map(len, stops))
        self._held = ""
        self.found: str | None = None

    def cut(self, events: Sequence[Event]) -> list[Event]:
        """The events that may be passed on; nothing after a stop string."""
        passed: list[Event] = []
        for event in events:
            if self.found is not None:
                break
            if isinstance(event, ContentDelta):
                text = self.take(event.text)
                if text:
                    passed.append(ContentDelta(text))
            else:
                passed += (*self.rest(), event)
        return passed

    def rest(self) -> list[Event]:
        """What was held back and turned out to be no stop string."""
        held = self.take_rest()
        return [ContentDelta(held)] if held else []

    def take_rest(self) -> str:
        """The content that was held back; none behind a stop string."""
        held, self._held = self._held, ""
        return held if self.found is None else ""

    def before(self, text: str) -> str:
        """A whole content, up to the first stop string."""
        match = self._pattern.search(text)
        return text if match is None else text[: match.start()]

    def take(self, text: str) -> str:
        """Some more content; what of it may be passed on."""
        text = self._held + text
        match = self._pattern.search(text)
        if match is not None:
            self.found, self._held = match.group(), ""
            return text[: match.start()]
        cut = len(text)
        for start in range(max(0, len(text) - self._longest + 1), len(text)):
            if any(stop.startswith(text[start:]) for stop in self._stops):
                cut = start
                break
        self._held = text[cut:]
        return text[:cut]
