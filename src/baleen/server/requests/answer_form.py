"""The form that a request demands of its answer, in all the ways in which clients say it.

`response_format` is the API's way; it also shows a schema to the model. vLLM's clients send
`structured_outputs`, or the older `guided_json`, `guided_regex` and `guided_choice`, and put into
the prompt themselves what the model should know of it.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from typing import Any, Final

from baleen.protocol.errors import expect_object
from baleen.protocol.grammar import AnswerForm
from baleen.server.errors import BadRequestError

_ANY_OBJECT: Final = AnswerForm({"type": "object"})


def read_form(body: Mapping[str, Any]) -> AnswerForm | None:
    """The form of an answer; None where it is free.

    Raises:
        BadRequestError: a form that cannot be read.
        MessageError: a field that is no object.
    """
    wanted = expect_object(body.get("response_format"), "response_format")
    kind = wanted.get("type")
    if kind == "json_object":
        return _ANY_OBJECT
    if kind == "json_schema":
        holder = expect_object(wanted.get("json_schema"), "response_format.json_schema")
        return AnswerForm(holder.get("schema"))
    if kind == "regex":
        return _pattern(wanted.get("regex"), "response_format.regex")
    return _vllm_form(body)


def _vllm_form(body: Mapping[str, Any]) -> AnswerForm | None:
    given = dict(expect_object(body.get("structured_outputs"), "structured_outputs"))
    for name in ("json", "regex", "choice"):
        if body.get(f"guided_{name}") is not None:
            given.setdefault(name, body[f"guided_{name}"])
    found = {name: value for name, value in given.items() if value not in (None, False)}
    if not found:
        return None
    if len(found) > 1:
        raise BadRequestError(f"only one form can be demanded, not {', '.join(sorted(found))}")
    ((name, value),) = found.items()
    if name == "json":
        return AnswerForm(_schema(value))
    if name == "json_object":
        return _ANY_OBJECT
    if name == "regex":
        return _pattern(value, "structured_outputs.regex")
    if name == "choice":
        return _choice(value)
    raise BadRequestError(
        f"`structured_outputs.{name}` is not supported here",
        remedy="use json, json_object, regex or choice",
    )


def _schema(value: Any) -> Any:
    try:
        schema = json.loads(value) if isinstance(value, str) else value
    except ValueError as error:
        raise BadRequestError(f"`structured_outputs.json` is no JSON: {error}") from error
    if not isinstance(schema, Mapping | bool):
        raise BadRequestError("`structured_outputs.json` must be a JSON schema")
    return schema


def _pattern(value: Any, field: str) -> AnswerForm:
    if not isinstance(value, str) or not value:
        raise BadRequestError(f"`{field}` must be a regular expression")
    return AnswerForm(pattern=value)


def _choice(value: Any) -> AnswerForm:
    is_list = isinstance(value, list) and value and all(isinstance(one, str) for one in value)
    if not is_list:
        raise BadRequestError("`structured_outputs.choice` must be a list of strings")
    return AnswerForm(pattern="|".join(re.sub(r"(\W)", r"\\\1", one) for one in value))
