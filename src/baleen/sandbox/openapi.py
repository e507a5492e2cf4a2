"""The description of the edge's HTTP door, as OpenAPI 3.1."""

from __future__ import annotations

from typing import Any, NamedTuple

from baleen import __version__


class Request(NamedTuple):
    """One request of the door: what it does and takes; names with ``?`` may be left out."""

    summary: str
    fields: dict[str, dict[str, Any]]


_TEXT = {"type": "string"}
_NUMBER = {"type": "number"}
_WHOLE = {"type": "integer"}
_BYTES = {
    "type": "object",
    "properties": {"base64": {"type": "string", "contentEncoding": "base64"}},
    "required": ["base64"],
}
_NETWORK = {
    "description": '"none", "public", or a list of "name:port"',
    "oneOf": [{"enum": ["none", "public"]}, {"type": "array", "items": _TEXT}],
}
_BOX = {"box": _TEXT}
_SPEC = {
    "type": "object",
    "properties": {
        "image": {**_TEXT, "description": '"host" or an image of the edge\'s store'},
        "cpu": _NUMBER,
        "memory_mb": _WHOLE,
        "disk_mb": _WHOLE,
        "pids": _WHOLE,
        "ttl_idle_s": _NUMBER,
        "job": {"type": ["string", "null"]},
        "labels": {"type": "object", "additionalProperties": _TEXT},
        "network": _NETWORK,
    },
}
_JOB = {
    "type": "object",
    "properties": {
        "argv": {"type": "array", "items": _TEXT},
        "timeout_ms": {"type": ["integer", "null"], "default": 30_000},
        "cwd": {"type": ["string", "null"]},
        "env": {"type": "object", "additionalProperties": _TEXT},
        "stdin": _BYTES,
        "user": {"type": ["string", "null"]},
        "max_output": _WHOLE,
    },
    "required": ["argv"],
}

REQUESTS: dict[str, Request] = {
    "create": Request(
        "Make a box; the same `request` again gives the same box.",
        {"spec?": _SPEC, "request?": _TEXT},
    ),
    "attach": Request("Find a living box.", _BOX),
    "list": Request("List the living boxes.", {}),
    "run": Request(
        "Run a command once per key; the same key again gives the recorded result.",
        {**_BOX, "job": _JOB, "key?": _TEXT},
    ),
    "file": Request(
        "Read, write, list, stat, mkdir, remove or rename in a box.",
        {**_BOX, "op": _TEXT, "path": _TEXT, "arguments?": {"type": "object"}},
    ),
    "set_network": Request("Change what a box may reach.", {**_BOX, "network": _NETWORK}),
    "snapshot": Request("Keep a box's files as an image.", {**_BOX, "name?": _TEXT}),
    "fork": Request("Make boxes with a box's files.", {**_BOX, "n?": _WHOLE}),
    "pause": Request("Stop a box's processes where they are.", _BOX),
    "resume": Request("Let a paused box go on.", _BOX),
    "close": Request("End a box.", _BOX),
    "reap": Request("End every box of a job, or every box nobody holds.", {"job?": _TEXT}),
}


def document() -> dict[str, Any]:
    """The OpenAPI document."""
    paths: dict[str, Any] = {
        f"/v1/{name}": {"post": _post(item)} for name, item in REQUESTS.items()
    }
    paths["/health"] = {"get": {"summary": "Whether the edge lives.", "responses": _answers({})}}
    return {
        "openapi": "3.1.0",
        "info": {"title": "baleen sandbox edge", "version": __version__},
        "paths": paths,
        "components": {"securitySchemes": {"token": {"type": "http", "scheme": "bearer"}}},
    }


def _post(item: Request) -> dict[str, Any]:
    schema = {
        "type": "object",
        "properties": {name.rstrip("?"): field for name, field in item.fields.items()},
        "required": [name for name in item.fields if not name.endswith("?")],
    }
    answer = {"type": "object", "properties": {"ok": {}}, "required": ["ok"]}
    return {
        "summary": item.summary,
        "security": [{"token": []}],
        "requestBody": {"content": {"application/json": {"schema": schema}}},
        "responses": _answers(answer),
    }


def _answers(good: dict[str, Any]) -> dict[str, Any]:
    fields = dict.fromkeys(("code", "message", "remedy"), _TEXT)
    error = {"type": "object", "properties": {"error": {"type": "object", "properties": fields}}}
    return {
        "200": {"description": "Done.", "content": {"application/json": {"schema": good}}},
        "default": {"description": "Refused.", "content": {"application/json": {"schema": error}}},
    }
