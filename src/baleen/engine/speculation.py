"""Speculative decoding: the MTP block drafts, one pass of the whole model verifies.

A draft is kept if and only if it is the token that plain sampling would have drawn at its position:
draws depend on seed and position alone, so the output is that of plain decoding at any temperature.
A pass over several tokens rounds differently than passes over one; where that could decide (the
draw falls close to a border between two tokens) the tokens are computed again one by one.

After a rejected draft the state goes back to before the pass, and the tokens that were right are
computed once more *with* the next pass instead of in one of their own: a pass over a few tokens
costs little more than a pass over one.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from baleen.cache import Mark
from baleen.engine.sampling import Guide, SampledToken, Sampling, pick, uniform
from baleen.engine.session import Session
from baleen.errors import UsageError
from baleen.model import Transformer
from baleen.model.mtp import block_of, draft, new_draft_state
from baleen.model.transformer import PREFILL_CHUNK

MARGIN = 1e-4
"""Of the largest logit (at temperature 0), or of the probability: closer to a border than this, a
draw is not left to the rounding of a wide pass. Passes of different width differ by about 1e-6."""
MOST_PENDING = 8
"""So many tokens are computed again with a pass at most; then one pass goes without drafts."""


class Drafter:
    """Proposes tokens for one conversation.

    Holds the MTP block's state, and behind it a queue: streams of positions that the model has
    verified and the block has not seen. The last of them still waits for its next token.
    """

    def __init__(self, model: Transformer) -> None:
        block_of(model)
        self.model = model
        self.forget()

    def forget(self) -> None:
        """Starts anew, with nothing known of the conversation."""
        self._state = new_draft_state(self.model)
        self._next: list[int] = []
        self._streams: Tensor | None = None

    def take(self, streams_BTNd: Tensor, token_ids: Sequence[int]) -> None:
        """Takes over streams [1, T, N, d] of verified tokens that follow those taken before."""
        if self._streams is None:
            self._streams, self._next = streams_BTNd, [*token_ids[1:]]
        else:
            self._streams = torch.cat([self._streams, streams_BTNd], dim=1)
            self._next += token_ids
        window = self.model.config.sliding_window
        if self._streams.shape[1] > window:  # what lies further back, no draft can see
            self._state = new_draft_state(self.model)
            self._streams = self._streams[:, -window:].clone()
            self._next = self._next[-(window - 1) :] if window > 1 else []

    def propose(self, token: int, count: int, position: int, sampling: Sampling) -> list[int]:
        """Up to `count` tokens behind `token`, the next of the last position taken; the first of
        them would stand at `position`. Ends before an end-of-sentence token."""
        if self._streams is None or count < 1:
            return []
        made = draft(self.model, self._streams, torch.tensor([[*self._next, token]]), self._state)
        # the queue is in the block's state now; its last position stays, for the next token taken
        mark, drafts = self._state.mark(), list[int]()
        self._streams, self._next = None, []
        while True:
            logits = self.model.logits(made.hidden_BTd[:, -1])
            drafts.append(draw(logits, sampling, position + len(drafts))[0].id)
            if drafts[-1] == self.model.config.eos_token_id:
                drafts.pop()
                break
            if len(drafts) == count:
                break
            made = draft(
                self.model, made.streams_BTNd[:, -1:], torch.tensor([drafts[-1:]]), self._state
            )
        self._state.rollback(mark)
        return drafts


class DraftingSession(Session):
    """A session that decodes several tokens with one pass of the model where drafts are right."""

    def __init__(self, model: Transformer, draft_tokens: int = 1) -> None:
        if draft_tokens < 1:
            raise UsageError(f"draft_tokens = {draft_tokens}: must be at least 1")
        super().__init__(model)
        self.drafter, self.draft_tokens = Drafter(model), draft_tokens
        self.decode_passes = 0
        """Passes of the whole model after a prompt's, in all turns together."""
        self.drafted_tokens = 0
        self.accepted_tokens = 0
        self.doubted_tokens = 0
        """Draws too close to a border, computed again one token at a time."""
        self._pending: list[int] = []
        """Right tokens that the state does not hold: the next pass takes them in."""

    def _rewind(self, prompt_ids: Sequence[int]) -> None:
        held = len(self.token_ids)
        super()._rewind(prompt_ids)
        if self._pending or len(self.token_ids) < held:
            self._pending = []
            self.drafter.forget()  # the prompt that follows tells it enough

    def _prefill(self, token_ids: Sequence[int]) -> Tensor:
        # the pieces are those that the model itself would make of the prompt
        tail = (len(token_ids) - 1) % PREFILL_CHUNK + 1
        if tail < len(token_ids):
            self._feed(token_ids[:-tail])
            self.drafter.forget()
        streams = self.model.streams(torch.tensor([token_ids[-tail:]]), self._state)
        self.token_ids.extend(token_ids[-tail:])
        self.drafter.take(streams, token_ids[-tail:])
        return self.model.logits(self.model.readout(streams)[:, -1])

    def _continue(
        self, logits: Tensor, sampling: Sampling, guide: Guide | None
    ) -> Iterator[SampledToken]:
        if guide is not None or sampling.min_tokens:
            raise UsageError(
                "drafts are drawn without a guide and a least number of tokens",
                remedy="use a session without drafts",
            )
        (token,) = draw(logits, sampling, len(self.token_ids))
        left = sampling.max_tokens - 1
        yield token
        while left and token.id != self.model.config.eos_token_id:
            made = self._round(token.id, left, sampling)
            yield from made
            left -= len(made)
            token = made[-1]

    def _round(self, token: int, left: int, sampling: Sampling) -> list[SampledToken]:
        """The tokens behind `token`, the newest one: those of its drafts that are right, and one
        more. The state is in order before any of them is handed out."""
        sure = [*self._pending, token]
        behind = len(self.token_ids) + len(sure)
        count = min(self.draft_tokens, left - 1) if len(sure) <= MOST_PENDING else 0
        drafts = self.drafter.propose(token, count, behind, sampling)
        mark = self._state.mark()
        streams = self.model.streams(torch.tensor([[*sure, *drafts]]), self._state)
        logits = self.model.logits(self.model.readout(streams[:, len(sure) - 1 :]))[0]
        drawn = draw(logits, sampling, behind)
        right = 0
        while right < len(drafts) and drawn[right].id == drafts[right]:
            right += 1
        doubts = doubtful(logits[: right + 1], sampling, behind)
        if len(sure) + len(drafts) > 1 and any(doubts):
            right = doubts.index(True)
            drawn[right] = self._again(mark, [*sure, *drafts[:right]], sampling)
        elif right == len(drafts):
            self.token_ids += [*sure, *drafts]
            self._pending = []
        else:
            self._state.rollback(mark)
            self._pending = [*sure, *drafts[:right]]
        newest = slice(len(sure) - 1, len(sure) + right)
        self.drafter.take(streams[:, newest], [token, *drafts[:right]])
        self.decode_passes += 1
        self.drafted_tokens += len(drafts)
        self.accepted_tokens += right
        return drawn[: right + 1]

    def _again(self, mark: Mark, token_ids: list[int], sampling: Sampling) -> SampledToken:
        """Takes the tokens in one at a time, as plain decoding does, and draws what follows."""
        self._state.rollback(mark)
        self._pending = []
        for token in token_ids:
            logits = self._feed([token])
        self.decode_passes += len(token_ids)
        self.doubted_tokens += 1
        return draw(logits, sampling, len(self.token_ids))[0]


def draw(logits_TV: Tensor, sampling: Sampling, position: int) -> list[SampledToken]:
    """The token of each row; the first row's stands at `position`, the others' behind it."""
    draws = _draws(sampling, position, len(logits_TV))
    ids, logprobs = pick(logits_TV, sampling, draws)
    return [SampledToken(*pair) for pair in zip(ids.tolist(), logprobs.tolist(), strict=True)]


def doubtful(logits_TV: Tensor, sampling: Sampling, position: int) -> list[bool]:
    """Whether logits that differ by rounding could give another token; see `draw`."""
    if sampling.temperature == 0.0:
        best = logits_TV.topk(2).values
        return (best[:, 0] - best[:, 1] <= MARGIN * logits_TV.abs().amax(-1)).tolist()
    draws = _draws(sampling, position, len(logits_TV))
    low, _ = pick(logits_TV, sampling, (draws - MARGIN).clamp(min=0.0))
    high, _ = pick(logits_TV, sampling, (draws + MARGIN).clamp(max=1.0))
    return (low != high).tolist()


def _draws(sampling: Sampling, position: int, count: int) -> Tensor:
    draws = [uniform(sampling.seed, position + number) for number in range(count)]
    return torch.tensor(draws, dtype=torch.float64)
