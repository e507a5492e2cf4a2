"""What each flavor does at the edges of the format."""

from typing import Any

import pytest

from baleen.protocol import Encoder
from baleen.protocol.errors import EffortError, MessageError, RevisionError, ToolSchemaError
from baleen.protocol.message import Message, Role

BOS, EOS = "<｜begin▁of▁sentence｜>", "<｜end▁of▁sentence｜>"
TOOL = {"type": "function", "function": {"name": "f"}}
OTHER = {"type": "function", "function": {"name": "g"}}


def user(text: Any, **more: Any) -> dict[str, Any]:
    return {"role": "user", "content": text, **more}


def says(text: Any, **more: Any) -> dict[str, Any]:
    return {"role": "assistant", "content": text, **more}


def calls(*given: tuple[str, str, Any], **more: Any) -> dict[str, Any]:
    listed = [
        {"id": i, "type": "function", "function": {"name": n, "arguments": a}} for i, n, a in given
    ]
    return {"role": "assistant", "content": "", "tool_calls": listed, **more}


def result(call_id: str, text: Any = "r") -> dict[str, Any]:
    return {"role": "tool", "tool_call_id": call_id, "content": text}


def encoded(flavor: str, messages: list[Any], **options: Any) -> str:
    options = {"effort": "low", **options}
    if not options.get("thinking", True):
        options.pop("effort")
    return Encoder("0731", flavor).encode(messages, **options).text.removeprefix(BOS)


def block(*invokes: str) -> str:
    inside = "\n".join(invokes)
    return f"\n\n<｜DSML｜tool_calls>\n{inside}\n</｜DSML｜tool_calls>"


@pytest.mark.parametrize(
    ("flavor", "text"),
    [
        ("api", block('<｜DSML｜invoke name="f">\n</｜DSML｜invoke>')),
        ("checkpoint", block('<｜DSML｜invoke name="f">\n\n</｜DSML｜invoke>')),
    ],
)
def test_a_call_without_arguments_has_a_blank_line_only_in_the_checkpoint(
    flavor: str, text: str
) -> None:
    messages = [user("q"), calls(("i", "f", "{}")), result("i")]
    assert text in encoded(flavor, messages)


def test_a_later_system_message_moves_to_the_front_only_in_the_api() -> None:
    messages = [{"role": "system", "content": "a"}, user("q"), {"role": "system", "content": "b"}]
    messages += [user("z")]
    assert encoded("api", messages) == "a\n\nb<｜User｜>q\n\nz<｜Assistant｜><think>"
    assert encoded("checkpoint", messages) == "a<｜User｜>qb<｜User｜>z<｜Assistant｜><think>"


def test_a_function_is_shown_as_given_only_in_the_checkpoint() -> None:
    tools = [{"type": "function", "function": {"x": 1, "parameters": None, "name": "f"}}]
    shown = '{"name": "f", "description": "", "parameters": {}}\n'
    assert shown in encoded("api", [user("q")], tools=tools)
    shown = '{"x": 1, "parameters": null, "name": "f"}\n'
    assert shown in encoded("checkpoint", [user("q")], tools=tools)


@pytest.mark.parametrize("arguments", ["[1]", '"s"', "5", "null"])
def test_arguments_that_are_no_object_stay_text_in_the_api_and_are_refused_otherwise(
    arguments: str,
) -> None:
    messages = [user("q"), calls(("i", "f", arguments)), result("i")]
    wrapped = f'name="arguments" string="true">{arguments}</｜DSML｜parameter>'
    assert wrapped in encoded("api", messages)
    with pytest.raises(MessageError, match="no object"):
        encoded("checkpoint", messages)


@pytest.mark.parametrize("flavor", ["api", "checkpoint"])
def test_arguments_that_are_no_json_stay_text(flavor: str) -> None:
    text = encoded(flavor, [user("q"), calls(("i", "f", "")), result("i")])
    assert '<｜DSML｜parameter name="arguments" string="true"></｜DSML｜parameter>' in text


def test_arguments_given_as_an_object_are_wrapped_only_in_the_checkpoint() -> None:
    messages = [user("q"), calls(("i", "f", {"a": [1.5]})), result("i")]
    assert 'name="a" string="false">[1.5]</' in encoded("api", messages)
    wrapped = 'name="arguments" string="false">{"a": [1.5]}</'
    assert wrapped in encoded("checkpoint", messages)


def test_a_final_assistant_message_gets_a_fresh_header_only_in_the_api() -> None:
    messages = [user("q"), says("a", reasoning_content="r")]
    fresh = f"<｜User｜>q<｜Assistant｜></think>a{EOS}<｜Assistant｜><think>"
    assert encoded("api", messages) == fresh
    assert encoded("checkpoint", messages) == f"<｜User｜>q<｜Assistant｜><think>r</think>a{EOS}"


def test_developer_messages_are_user_turns_only_in_the_checkpoint() -> None:
    messages = [{"role": "developer", "content": "d"}, user("q")]
    assert encoded("checkpoint", messages) == "<｜User｜>q<｜Assistant｜><think>"
    kept = encoded("checkpoint", messages, keep_reasoning=True)
    assert kept == "<｜User｜>d<｜User｜>q<｜Assistant｜><think>"
    with pytest.raises(MessageError, match=r"messages\[0\].*unknown variant `developer`"):
        encoded("api", messages)


def test_parallel_calls_are_sorted_by_id_only_in_the_api() -> None:
    asked = calls(("c10", "f", '{"a": 1}'), ("c9", "g", '{"a": 2}'))
    messages = [user("q"), asked, result("c9", "neun"), result("c10", "zehn")]
    in_api = encoded("api", messages)
    assert in_api.index('name="f"') < in_api.index('name="g"')
    assert in_api.index("zehn") < in_api.index("neun")
    asked = calls(("c9", "g", '{"a": 2}'), ("c10", "f", '{"a": 1}'))
    messages = [user("q"), asked, result("c10", "zehn"), result("c9", "neun")]
    in_checkpoint = encoded("checkpoint", messages)
    assert in_checkpoint.index('name="g"') < in_checkpoint.index('name="f"')
    assert in_checkpoint.index("neun") < in_checkpoint.index("zehn")


@pytest.mark.parametrize(
    ("number", "in_api", "in_checkpoint"),
    [
        ("1.10", "1.1", "1.1"),
        ("1e5", "100000.0", "100000.0"),
        ("1e16", "1e+16", "1e+16"),
        ("1e-5", "0.00001", "1e-05"),
        ("-1.25e-5", "-0.0000125", "-1.25e-05"),
        ("1e-7", "1e-7", "1e-07"),
        ("1e-10", "1e-10", "1e-10"),
        ("18446744073709551615", "18446744073709551615", "18446744073709551615"),
        ("18446744073709551616", "1.8446744073709552e+19", "18446744073709551616"),
        ("-0", "-0.0", "0"),
    ],
)
def test_numbers_are_spelled_as_each_encoder_spells_them(
    number: str, in_api: str, in_checkpoint: str
) -> None:
    messages = [user("q"), calls(("i", "f", f'{{"a": {number}}}')), result("i")]
    assert f'string="false">{in_api}</' in encoded("api", messages)
    assert f'string="false">{in_checkpoint}</' in encoded("checkpoint", messages)


@pytest.mark.parametrize("arguments", ['{"a": NaN}', '{"a": 1e400}', '{"a": "\\ud800"}'])
def test_what_the_api_does_not_take_for_json_stays_text(arguments: str) -> None:
    messages = [user("q"), calls(("i", "f", arguments)), result("i")]
    assert f'name="arguments" string="true">{arguments}</' in encoded("api", messages)
    assert 'name="a"' in encoded("checkpoint", messages)


def test_lists_of_parts_are_joined_by_blank_lines() -> None:
    parts = [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]
    for flavor in ("api", "checkpoint"):
        assert encoded(flavor, [user(parts)]) == "<｜User｜>a\n\nb<｜Assistant｜><think>"


def test_an_image_is_a_placeholder_token_where_the_model_sees_and_text_elsewhere() -> None:
    parts = [
        {"type": "image_url", "image_url": {"url": "x"}},
        {"type": "text", "text": "<｜image｜>"},
    ]
    assert "<｜User｜>[Unsupported Image]\n\n<｜image｜>" in encoded("api", [user(parts)])
    segments = Encoder("v4.1").encode([user(parts)]).segments
    assert segments[-5:-2] == [
        ("<｜User｜>", True),
        ("<｜image｜>", True),
        ("\n\n<｜image｜>", False),
    ]
    assert "<｜User｜>[Unsupported image_url]\n\n" in encoded("checkpoint", [user(parts)])
    vision = Encoder("0731", "checkpoint", image_token="<｜deepseek_image｜>")
    segments = vision.encode([user(parts)]).segments
    assert ("<｜deepseek_image｜>", True) in segments


TASKS: list[tuple[list[dict[str, Any]], str]] = [
    ([user("q", task="action")], "<｜User｜>q<｜Assistant｜></think><｜action｜>"),
    ([user("q", task="query")], "<｜User｜>q<｜query｜>"),
    ([user("q", task="authority")], "<｜User｜>q<｜authority｜>"),
    ([user("q", task="domain")], "<｜User｜>q<｜domain｜>"),
    ([user("q", task="read_url")], "<｜User｜>q<｜read_url｜>"),
    (
        [user("q"), says("a", task="title"), says("T")],
        f"<｜User｜>q<｜Assistant｜></think>a{EOS}<｜title｜>T{EOS}",
    ),
    ([user("q"), says("a", wo_eos=True)], "<｜User｜>q<｜Assistant｜></think>a"),
]


@pytest.mark.parametrize(("messages", "text"), TASKS)
def test_tasks_ask_with_their_token(messages: list[dict[str, Any]], text: str) -> None:
    assert encoded("checkpoint", messages, thinking=False) == text


def test_the_output_of_a_task_has_no_reasoning() -> None:
    messages = [user("q", task="action"), says("Search", reasoning_content="r")]
    shown = encoded("checkpoint", messages, keep_reasoning=True)
    assert shown == f"<｜User｜>q<｜Assistant｜><think><｜action｜>Search{EOS}"


@pytest.mark.parametrize("flavor", ["api", "checkpoint"])
@pytest.mark.parametrize(
    ("final", "tail", "start"),
    [
        (says("Once"), "<think></think>Once", "content"),
        (says("Once", reasoning_content="Let"), "<think>Let</think>Once", "content"),
        (says("", reasoning_content="Let"), "<think>Let", "reasoning"),
        (says(""), "<think>", None),
    ],
)
def test_a_turn_is_continued_where_it_stopped(
    final: dict[str, Any], tail: str, start: str | None, flavor: str
) -> None:
    prompt = Encoder("0731", flavor).encode([user("q"), final], tools=[TOOL], continue_final=True)
    assert prompt.text.endswith(f"<｜User｜>q<｜Assistant｜>{tail}")
    assert prompt.start == start


@pytest.mark.parametrize("flavor", ["api", "checkpoint"])
def test_forced_calls_start_in_the_block_and_wait_for_the_thinking(flavor: str) -> None:
    encoder = Encoder("0731", flavor)
    named = {"type": "function", "function": {"name": "g"}}
    chat = encoder.encode([user("q")], tools=[TOOL, OTHER], thinking=False, tool_choice=named)
    assert chat.text.endswith("</think>\n\n<｜DSML｜tool_calls>\n")
    assert '"name": "f"' not in chat.text
    thinking = encoder.encode([user("q")], tools=[TOOL, OTHER], tool_choice=named)
    assert thinking.text == encoder.encode([user("q")], tools=[TOOL, OTHER]).text
    assert thinking.choice.name == "g"


def test_tools_that_may_not_be_called_are_not_shown() -> None:
    prompt = Encoder().encode([user("q")], tools=[TOOL], tool_choice="none", effort="low")
    assert prompt.text == f"{BOS}<｜User｜>q<｜Assistant｜><think>"
    call = block('<｜DSML｜invoke name="f">\n</｜DSML｜invoke>')
    parser = prompt.parser()
    parser.feed(f"r</think>a{call}")
    turn = parser.finish()
    assert (turn.content, turn.tool_calls, turn.finish_reason) == ("a", [], "stop")


@pytest.mark.parametrize(
    ("revision", "effort", "starts"),
    [
        ("preview", None, "<｜User｜>"),
        ("preview", "max", "Reasoning Effort: Absolute"),
        ("0731", "minimal", "<｜User｜>"),
        ("0731", "medium", "Reasoning Effort: Absolute"),
        ("0731", "ultra", "Reasoning Effort: Beyond"),
        ("v4.1", None, "<｜System｜>Reasoning Effort: 75 "),
        ("v4.1", 33, "<｜System｜>Reasoning Effort: 33 "),
    ],
)
def test_effort_is_said_first(revision: str, effort: Any, starts: str) -> None:
    text = Encoder(revision).encode([user("q")], effort=effort).text
    assert text.removeprefix(BOS).startswith(starts)


def test_effort_none_switches_thinking_off() -> None:
    prompt = Encoder().encode([user("q")], effort="none")
    assert not prompt.thinking
    assert prompt.text.endswith("</think>")


@pytest.mark.parametrize(
    ("revision", "flavor", "effort"),
    [
        ("preview", "api", "low"),
        ("0731", "checkpoint", "xhigh"),
        ("0731", "api", 50),
        ("v4.1", "api", 0),
        ("v4.1", "api", "bogus"),
    ],
)
def test_unknown_efforts_are_refused(revision: str, flavor: str, effort: Any) -> None:
    with pytest.raises(EffortError):
        Encoder(revision, flavor).encode([user("q")], effort=effort)


@pytest.mark.parametrize(
    ("messages", "index", "words"),
    [
        ([], None, "Empty input messages"),
        (["hi"], 0, "object"),
        ([{"role": "user"}], 0, "missing field `content`"),
        ([user(None)], 0, "string or a list"),
        ([user("q"), says(None)], 1, "content or tool_calls must be set"),
        ([user("q"), says("a", tool_calls=[])], 1, "empty array"),
        ([user("q"), result("i")], 1, "preceding message with 'tool_calls'"),
        ([user("q"), calls(("i", "f", "{}"))], 1, "insufficient tool messages"),
        ([user("q"), calls(("i", "f", "{}")), result("j")], 1, "did not have response"),
        ([user("q"), calls(("i", "f", "{}"), ("i", "f", "{}"))], 1, "Duplicate value"),
        ([user("q"), calls(("i", "f", 5)), result("i")], 1, "arguments"),
        ([says("a", prefix=True), user("q")], 0, "not final message"),
        ([user("q"), says("a", reasoning_content=5)], 1, "reasoning_content"),
    ],
)
def test_bad_messages_are_refused_by_index_and_field(
    messages: list[Any], index: int | None, words: str
) -> None:
    with pytest.raises(MessageError, match=words) as caught:
        Encoder().encode(messages)
    assert caught.value.index == index


@pytest.mark.parametrize(
    ("response_format", "field"),
    [
        ({"type": "xml"}, "response_format.type"),
        ({"schema": {}}, "response_format.type"),
        ({"type": "json_schema"}, "response_format.json_schema.schema"),
        (
            {"type": "json_schema", "json_schema": {"schema": 5}},
            "response_format.json_schema.schema",
        ),
    ],
)
def test_response_formats_that_say_nothing_are_refused(
    response_format: dict[str, Any], field: str
) -> None:
    with pytest.raises(MessageError) as caught:
        Encoder().encode([user("q")], response_format=response_format)
    assert caught.value.field == field


@pytest.mark.parametrize(
    ("tools", "words"),
    [
        ([{"function": {"name": "f"}}], "missing field `type`"),
        ([{"type": "function"}], "missing field `function`"),
        ([{"type": "function", "function": {"name": "a b"}}], "does not match pattern"),
        ([TOOL, TOOL], "unique"),
        ([{"type": "function", "function": {"name": "f", "parameters": []}}], "Invalid schema"),
        (
            [
                {
                    "type": "function",
                    "function": {"name": "f", "parameters": {"type": "object", "x": {1}}},
                }
            ],
            "no JSON value",
        ),
    ],
)
def test_bad_tools_are_refused(tools: list[Any], words: str) -> None:
    with pytest.raises(ToolSchemaError, match=words):
        Encoder().encode([user("q")], tools=tools)


def test_strict_tools_are_shown_closed() -> None:
    schema = {
        "title": "gone",
        "properties": {"a": {"minimum": 1, "type": "integer"}, "b": {"type": "string"}},
        "type": "object",
    }
    tool = {"type": "function", "function": {"name": "f", "strict": True, "parameters": schema}}
    shown = (
        '"parameters": {"type": "object", "properties": {"a": {"type": "integer", "minimum": 1},'
        ' "b": {"type": "string"}}, "additionalProperties": false, "required": ["a", "b"]}'
    )
    assert shown in encoded("api", [user("q")], tools=[tool])


@pytest.mark.parametrize(
    ("message", "options", "is_missing"),
    [
        (calls(("i", "f", "{}")), {}, True),
        (calls(("i", "f", "{}")), {"tools": [TOOL]}, True),
        (calls(("i", "f", "{}"), reasoning_content=""), {}, False),
        (calls(("call_00_ET_i", "f", "{}")), {}, False),
        (calls(("i", "f", "{}")), {"thinking": False}, False),
        (says("a"), {}, False),
    ],
)
def test_reasoning_that_did_not_come_back_is_named_or_refused(
    message: dict[str, Any], options: dict[str, Any], is_missing: bool, caplog: Any
) -> None:
    given = [c["id"] for c in message.get("tool_calls", ())]
    messages = [user("q"), message, *(result(call_id) for call_id in given)]
    prompt = Encoder().encode(messages, **options)
    assert prompt.missing_reasoning == ((1,) if is_missing else ())
    assert ("messages[1]" in caplog.text) == is_missing
    strict = Encoder(missing_reasoning="reject")
    if not is_missing:
        assert strict.encode(messages, **options).text == prompt.text
        return
    words = "The `reasoning_content` in the thinking mode must be passed back to the API."
    with pytest.raises(MessageError, match=words) as caught:
        strict.encode(messages, **options)
    assert caught.value.index == 1
    before = strict.encode(messages[:1], **options)
    with pytest.raises(MessageError, match=words):
        strict.extend(before, messages[1:])


def test_the_internal_message_type_is_taken_too() -> None:
    assert encoded("api", [Message(Role.USER, "q")]) == encoded("api", [user("q")])


def test_unknown_revisions_and_flavors_are_refused() -> None:
    with pytest.raises(RevisionError, match="preview, 0731"):
        Encoder("0801")
    with pytest.raises(RevisionError, match="checkpoint"):
        Encoder(flavor="hosted")


def test_errors_survive_a_trip_between_processes() -> None:
    import pickle

    error = MessageError("bad", index=3, field="content", remedy="fix it")
    copy = pickle.loads(pickle.dumps(error))
    assert (str(copy), copy.index, copy.code) == (str(error), 3, "bad-message")
