"""The `baleen` object of a response: what the gateway did, beyond what the dialects can say."""

from __future__ import annotations

from typing import Any

from baleen.protocol.turn import CallStatus, ParsedCall
from baleen.server.answers.answer import Answer


def report_of(answer: Answer) -> dict[str, Any]:
    """Everything worth saying of a finished answer; plain answers say what context is left."""
    turn, prepared = answer.turn, answer.prepared
    report: dict[str, Any] = {"context_remaining": answer.context_remaining}
    irregular = any(call.status is not CallStatus.CLEAN for call in turn.tool_calls)
    if irregular or turn.incomplete_calls:
        calls = [*turn.tool_calls, *turn.incomplete_calls]
        report["tool_report"] = [_call_report(call) for call in calls]
    if turn.repairs:
        report["repairs"] = {str(kind): number for kind, number in turn.repairs.items()}
    if answer.stall is not None:
        report["stall_kind"] = str(answer.stall)
    if answer.recovered:
        report["recovered"] = True
    if answer.closed_by is not None:
        report["reasoning_closed_by"] = answer.closed_by
    if prepared.num_reasoning_restored:
        report["reasoning_restored"] = prepared.num_reasoning_restored
    if prepared.cache_break is not None:
        report["cache_break_reason"] = prepared.cache_break._asdict()
    if answer.num_resumed_tokens:
        report["resumed_tokens"] = answer.num_resumed_tokens
    return report


def _call_report(call: ParsedCall) -> dict[str, Any]:
    is_cut = call.status is CallStatus.INCOMPLETE
    report = {
        "id": call.id,
        "name": call.name,
        "result": "truncated" if is_cut else str(call.status),
    }
    if call.status in (CallStatus.INCOMPLETE, CallStatus.MALFORMED):
        report["raw"] = call.arguments
    return report
