"""Completions: tokens in, tokens out; for training, and for clients that encode themselves."""

from __future__ import annotations

import asyncio
import json
import logging
from array import array
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import replace
from typing import Any

from aiohttp import web

from baleen.errors import BaleenError
from baleen.protocol.tokenizing import encoder_for
from baleen.server.doors.completion_run import CompletionRun
from baleen.server.doors.door import AnswerDoor, Call, describe
from baleen.server.errors import (
    BadRequestError,
    UpstreamError,
    UpstreamRefusalError,
    UpstreamStallError,
)
from baleen.server.requests.aside import aside
from baleen.server.requests.completion_ask import CompletionAsk, read_completion
from baleen.server.wire.sse import EventStream, WholeResponse

_log = logging.getLogger(__name__)
_BACK_OFF_S = 0.5


class CompletionsDoor(AnswerDoor):
    """`POST /v1/completions`: one prompt, as text or as token ids, without any template."""

    async def handle(self, call: Call) -> web.StreamResponse:
        """Answer a request."""
        ask = read_completion(call.body, self.gateway.config)
        ids = await self._ids(ask.prompt)
        await self._check(ask, ids)
        run = CompletionRun(self.gateway, ask, ids)
        self.gateway.running.add(run)
        try:
            if ask.stream:
                return await self._stream_run(call, run)
            return await self._whole_run(call, run)
        finally:
            self.gateway.running.discard(run)

    async def _ids(self, prompt: Any) -> list[int]:
        if isinstance(prompt, list) and len(prompt) == 1 and not isinstance(prompt[0], int):
            prompt = prompt[0]
        if isinstance(prompt, str):
            text, encode = prompt, encoder_for(self.gateway.tokenizer).encode_text
            prompt = list(await aside(len(text), lambda: encode(text)))
        size = self.gateway.tokenizer.get_vocab_size()
        if not isinstance(prompt, list) or not all(_is_id(number, size) for number in prompt):
            raise BadRequestError("`prompt` must be one text, or a list of token ids of this model")
        if not prompt:
            raise BadRequestError("`prompt` is empty; it needs at least one token")
        return prompt

    async def _check(self, ask: CompletionAsk, ids: Sequence[int]) -> None:
        """Is there room for it, here and in the context?"""
        self.gateway.admit()
        capabilities = await self.gateway.capabilities()
        context, asked = capabilities.context_tokens, ask.max_tokens
        if len(ids) + asked > context:
            raise BadRequestError(
                f"This model's maximum context length is {context} tokens. However, you requested"
                f" {len(ids) + asked} tokens ({len(ids)} in the messages, {asked} in the"
                " completion). Please reduce the length of the messages or completion."
            )
        if ask.scores_prompt and not capabilities.prompt_logprobs:
            raise BadRequestError(
                f"{capabilities.name} tells no log-probabilities of a prompt",
                remedy="leave out `echo`, or `logprobs`",
            )

    # --- generating ----------------------------------------------------------------------------

    async def _generate(self, call: Call, run: CompletionRun) -> None:
        """Sample; a stream that breaks off is gone on with from its last token."""
        num_failures = 0
        while run.finish is None:
            try:
                with call.trace.upstream(len(run.ids)) if call.trace else nullcontext():
                    await self.gateway.upstream.generate(self._rest(run), run)
                if run.finish is None:
                    raise UpstreamError("the upstream ended its stream without saying why")
            except (UpstreamRefusalError, UpstreamStallError):
                raise
            except UpstreamError as error:
                num_failures += 1
                if num_failures > self.gateway.config.upstream_retries:
                    raise
                self.gateway.telemetry.upstream_retries.add()
                _log.warning("%s: %s; going on behind token %d", run.id, error, len(run.ids))
                await asyncio.sleep(_BACK_OFF_S)
        run.count()
        if call.trace is not None:
            call.trace.completed(len(run.asked.ids), len(run.ids), run.finish)

    @staticmethod
    def _rest(run: CompletionRun) -> Any:
        asked = run.asked
        if not run.ids:
            return asked
        # A grammar cannot be entered in the middle, and the prompt is scored already.
        return replace(
            asked,
            ids=array("I", asked.ids) + array("I", run.ids),
            max_tokens=asked.max_tokens - len(run.ids),
            min_tokens=max(0, asked.min_tokens - len(run.ids)),
            constraint=None,
            scores_prompt=False,
        )

    async def _whole_run(self, call: Call, run: CompletionRun) -> web.StreamResponse:
        response = WholeResponse(call.request, {"x-request-id": run.id}, self._keep_alive)
        try:
            await self._generate(call, run)
        except BaleenError as error:
            if not response.has_begun:
                raise
            _log.warning("%s broke off: %s", run.id, error)
            return await response.finish(json.dumps(self.error_body(*describe(error))))
        finally:
            response.discard()
        return await response.finish(json.dumps(run.whole()))

    async def _stream_run(self, call: Call, run: CompletionRun) -> web.StreamResponse:
        stream = EventStream({"x-request-id": run.id}, self._keep_alive)
        response = await stream.open(call.request)
        try:
            run.begin(stream)
            await self._generate(call, run)
            stream.write(run.last_events())
        except (asyncio.CancelledError, ConnectionError):
            self.gateway.telemetry.disconnects.add()
            raise
        except Exception as error:
            status, described = describe(self.told(error, run.id))
            stream.write(f"data: {json.dumps({'error': {**described, 'status': status}})}\n\n")
        finally:
            stream.discard()
        await stream.close()
        return response


def _is_id(number: Any, size: int) -> bool:
    return isinstance(number, int) and not isinstance(number, bool) and 0 <= number < size
