"""The raw text of one parameter, up to its closing tag."""

from __future__ import annotations

from baleen.protocol import tokens
from baleen.protocol.call import CallBuilder
from baleen.protocol.prose import bracket_at_end

_OPENERS = ('parameter name="', ' parameter name="')


class ValueText:
    """Passes a parameter's text on, all but a tail that may belong to the next tag.

    The tail is a newline, a bracket, or both. At text level two things more are held back: an
    end-of-sentence token, which is text only if more text follows (it is then the end of the tail),
    and an opening tag at the start of a line, which is one only if a parameter's name follows (see
    :meth:`probe`).
    """

    __slots__ = ("_feed", "_probed", "tail")

    def __init__(self, call: CallBuilder) -> None:
        self._feed = call.feed
        self.tail = ""
        self._probed = ""

    def text(self, text: str) -> None:
        """More text; not empty."""
        tail = self.tail
        if tail:
            text = tail + text
            self.tail = ""
        last = text[-1]
        if last in "\n</":
            # Spelled out, most frequent first: a third of the pieces of HTML end like this.
            if last == "<" or (last == "/" and text[-2:] == "</"):
                tail = "<" if last == "<" else "</"
                text = text[: -len(tail)]
                if text[-1:] == "\n":
                    tail = "\n" + tail
                    text = text[:-1]
                self.tail = tail
            elif last == "\n":
                self.tail = "\n"
                text = text[:-1]
            if not text:
                return
        self._feed(text)

    def put(self, text: str) -> None:
        """Text that cannot be the beginning of a tag, and whatever was held back before it."""
        text = self.tail + text
        self.tail = ""
        if text:
            self._feed(text)

    def take_bracket(self) -> str:
        """The bracket in front of a marker; a newline before it stays held back."""
        bracket = bracket_at_end(self.tail) if self.tail else ""
        self.tail = self.tail[: len(self.tail) - len(bracket)]
        return bracket

    def hold_end_of_sentence(self) -> None:
        """Wait whether more text follows; a bracket in front of it has not begun a tag."""
        if self.tail != "\n":
            self.put("")
        self.tail += tokens.EOS

    def probe(self, text: str) -> str | None:
        """More text behind what may be an opening tag.

        Returns the text so far when it is one, an empty string when that is still open, and None
        when it was text, which has then been passed on.
        """
        self._probed += text
        if self._probed.startswith(_OPENERS):
            probed, self._probed = self._probed, ""
            return probed
        if any(opener.startswith(self._probed) for opener in _OPENERS):
            return ""
        self.end_probe()
        return None

    def end_probe(self) -> None:
        """It was text, the marker included; the newline before it is still held back."""
        probed, self._probed = self._probed, ""
        self.put("<" + tokens.DSML)
        if probed:
            self.text(probed)
