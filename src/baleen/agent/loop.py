"""The agent: ask what comes next, do it, write it down, until the run has ended."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from typing import Any

from baleen.agent import records
from baleen.agent.base import Endpoint, ToolCall, Watch
from baleen.agent.commands import InDoubt, KeyedCommands, LoggedCommands, NeverRan
from baleen.agent.decide import Dispatch, Finish, Sample, decide
from baleen.agent.journal import Journal
from baleen.agent.limits import Limits
from baleen.agent.observation import IN_DOUBT
from baleen.agent.outcome import Outcome
from baleen.agent.tools import Observation, Tool, Toolbox, ToolInputError
from baleen.agent.workplace import Workplace, call_key
from baleen.errors import EndpointError, SandboxError
from baleen.sandbox.errors import BoxGoneError


class Agent:
    """One conversation between a model and a box, driven to its end."""

    def __init__(
        self,
        endpoint: Endpoint,
        toolbox: Toolbox,
        workplace: Workplace,
        journal: Journal,
        limits: Limits,
        *,
        observation_limit_chars: int,
        watch: Watch,
        on_step: Callable[[], None] = lambda: None,
    ) -> None:
        self._endpoint = endpoint
        self._toolbox = toolbox
        self._workplace = workplace
        self._journal = journal
        self._limits = limits
        self._limit_chars = observation_limit_chars
        self._watch = watch
        self._on_step = on_step

    async def run(self) -> records.End:
        """Work until an outcome; it is recorded before this returns.

        Failures of the endpoint and the sandbox become the outcome `infra_error`. Cancellation
        passes through and leaves the run resumable.
        """
        try:
            async with asyncio.timeout(self._limits.deadline_s):
                await self._workplace.open()
                finish = await self._work()
        except TimeoutError:
            finish = Finish(
                Outcome.BUDGET, "deadline", f"no answer within {self._limits.deadline_s:g} s"
            )
        except (EndpointError, SandboxError) as error:
            finish = Finish(Outcome.INFRA_ERROR, error.code, str(error))
        end = records.End(finish.outcome, finish.cause, finish.message, records.now())
        self._journal.write(end, durable=True)
        return end

    async def _work(self) -> Finish:
        while not isinstance(step := decide(self._journal.history, self._limits), Finish):
            match step:
                case Sample(max_tokens):
                    await self._sample(max_tokens)
                case Dispatch(turn, index):
                    await self._dispatch(turn, index)
            self._on_step()
        return step

    async def _sample(self, max_tokens: int) -> None:
        number = len(self._journal.history.finished_turns)
        turn = await self._endpoint.sample(self._journal, max_tokens, self._watch)
        self._journal.write(records.TurnDone(number, turn, records.now()), durable=True)
        self._watch.turn_ended(turn)

    async def _dispatch(self, turn: int, index: int) -> None:
        call = self._journal.history.turns[turn].calls[index].call
        self._watch.call_started(call)
        result = await self._result(turn, index, call)
        self._journal.write(result, durable=True)
        self._watch.call_ended(call, result.text)

    async def _result(self, turn: int, index: int, call: ToolCall) -> records.Result:
        try:
            tool, arguments = self._toolbox.resolve(call)
        except ToolInputError as error:
            return _unrun(turn, index, f"[error: {error}]", "refused")
        while True:
            dispatched = self._dispatched(turn, index, call)
            try:
                commands = self._workplace.commands(dispatched)
                return await self._executed(turn, index, tool, arguments, commands)
            except InDoubt:
                return _unrun(turn, index, IN_DOUBT, "in_doubt")
            except NeverRan:  # the box that was asked is gone and had not begun
                self._record_call(turn, index, call)
            except BoxGoneError as error:  # nothing was run
                await self._workplace.replace(error)
                self._record_call(turn, index, call)

    async def _executed(
        self,
        turn: int,
        index: int,
        tool: Tool,
        arguments: Mapping[str, Any],
        commands: KeyedCommands | LoggedCommands,
    ) -> records.Result:
        try:
            shown = await tool.execute(arguments, commands, self._limit_chars)
        except ToolInputError as error:
            if not commands.results:
                return _unrun(turn, index, f"[error: {error}]", "refused")
            shown = Observation(f"[error: {error}]", 1)
        return records.Result(
            turn=turn,
            index=index,
            text=shown.text,
            source="box",
            exit_code=shown.exit_code,
            duration_s=sum(result.duration_s for result in commands.results),
            replayed=any(result.replayed for result in commands.results),
            at=records.now(),
        )

    def _dispatched(self, turn: int, index: int, call: ToolCall) -> records.Call:
        """The call's record: the one that an earlier process wrote, or a new one."""
        dispatched = self._journal.history.turns[turn].calls[index].dispatched
        return dispatched or self._record_call(turn, index, call)

    def _record_call(self, turn: int, index: int, call: ToolCall) -> records.Call:
        """Write down, durably, that a call is about to go to the current box."""
        record = records.Call(
            turn=turn,
            index=index,
            call_id=call.id,
            key=call_key(self._journal.history.run_id, turn, index, call),
            timeout_s=self._limits.command_timeout_s,
            box_id=self._workplace.box_id,
            at=records.now(),
        )
        self._journal.write(record, durable=True)
        return record


def _unrun(turn: int, index: int, text: str, source: str) -> records.Result:
    return records.Result(
        turn=turn,
        index=index,
        text=text,
        source=source,
        exit_code=None,
        duration_s=0.0,
        replayed=False,
        at=records.now(),
    )
