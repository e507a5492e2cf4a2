"""Log-probabilities as Chat Completions has them."""

from __future__ import annotations

import json
import math
from typing import Any

from baleen.server.answers.answer import Answer
from baleen.server.vocabulary import Vocabulary


class LogprobWriter:
    """Hands out the log-probabilities of an answer, each once."""

    def __init__(self, answer: Answer, vocabulary: Vocabulary) -> None:
        self._answer, self._vocabulary = answer, vocabulary
        self._given = 0

    def new(self) -> str:
        """Those that were not handed out yet, as JSON text."""
        entries = self._entries(self._given)
        self._given = len(self._answer.logprobs)
        return json.dumps({"content": entries, "refusal": None}) if entries else "null"

    def all(self) -> dict[str, Any]:
        """All of them."""
        return {"content": self._entries(0), "refusal": None}

    def _entries(self, start: int) -> list[dict[str, Any]]:
        answer = self._answer
        return [
            {
                **self._entry(answer.sampled[place], answer.logprobs[place]),
                "top_logprobs": [self._entry(*other) for other in self._others(place)],
            }
            for place in range(start, len(answer.logprobs))
        ]

    def _others(self, place: int) -> list[tuple[int, float]]:
        top = self._answer.top
        return list(top[place]) if place < len(top) else []

    def _entry(self, number: int, logprob: float) -> dict[str, Any]:
        return {
            "token": self._vocabulary.text_of(number),
            "token_id": number,
            "logprob": None if math.isnan(logprob) else logprob,
            "bytes": list(self._vocabulary.bytes_of(number)),
        }
