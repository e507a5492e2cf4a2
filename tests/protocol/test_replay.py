"""A history re-encodes to the tokens that were sampled."""

import sqlite3
from pathlib import Path
from typing import Any

import pytest
from tokenizers import Tokenizer

from baleen.protocol import Encoder, Prompt, Turn, tokens
from baleen.protocol.errors import ReplayError
from baleen.protocol.replay import ReplayStore

TOOLS = [{"type": "function", "function": {"name": "f"}}]
# What parsing and rendering would not give back: newlines around the tags, the spelling of values.
SAMPLED = (
    "\nI call.\n\n</think>\n\nNow.\n\n\n<｜DSML｜tool_calls>\n"
    '<｜DSML｜invoke name="f">\n'
    '<｜DSML｜parameter name="n" string="false">1.10</｜DSML｜parameter>\n'
    '<｜DSML｜parameter name="l" string="false">[1,2]</｜DSML｜parameter>\n'
    "</｜DSML｜invoke>\n</｜DSML｜tool_calls>"
)
PLAIN = "hm\n</think>\n\nAn answer."
QUESTION = {"role": "user", "content": "q"}


def ids_of(tokenizer: Tokenizer, text: str) -> list[int]:
    ids: list[int] = tokenizer.encode(text, add_special_tokens=False).ids
    return ids


def sample(
    store: ReplayStore, tokenizer: Tokenizer, output: str, scope: str = "", **options: Any
) -> tuple[Prompt, list[int], Turn]:
    """Let a model answer one question, and remember its answer."""
    prompt = Encoder().encode([QUESTION], effort="low", **options)
    ids = ids_of(tokenizer, output)
    parser = prompt.parser(tokenizer=tokenizer)
    parser.feed(ids)
    turn = parser.finish()
    store.remember(prompt, ids, turn, tokenizer, scope)
    return prompt, ids, turn


def sent_back(turn: Turn, **changes: Any) -> list[dict[str, Any]]:
    """The history as a client returns it, arguments re-serialised, with results."""
    calls = [
        {
            "id": c.id,
            "type": "function",
            "function": {"name": c.name, "arguments": c.arguments.replace(" ", "")},
        }
        for c in turn.tool_calls
    ]
    message = {"role": "assistant", "content": turn.content, "reasoning_content": turn.reasoning}
    if calls:
        message["tool_calls"] = calls
    message.update(changes)
    results = [{"role": "tool", "tool_call_id": c["id"], "content": "r"} for c in calls]
    return [QUESTION, message, *(results or [{"role": "user", "content": "z"}])]


def encoded(store: ReplayStore, messages: list[Any], scope: str = "", **options: Any) -> Prompt:
    def restore(read: Any) -> Any:
        return store.restore(read, scope)

    return Encoder().encode(messages, effort="low", restore=restore, **options)


@pytest.mark.parametrize("output", [SAMPLED, SAMPLED + tokens.EOS, PLAIN, PLAIN + tokens.EOS])
def test_the_next_prompt_begins_with_every_token_so_far(output: str, tokenizer: Tokenizer) -> None:
    store = ReplayStore()
    prompt, ids, turn = sample(store, tokenizer, output, tools=TOOLS)
    so_far = prompt.token_ids(tokenizer) + ids
    later = encoded(store, sent_back(turn), tools=TOOLS)
    assert later.token_ids(tokenizer)[: len(so_far)] == so_far
    assert later.text.startswith(prompt.text + output)
    assert (store.num_replayed, store.num_edited) == (1, 0)


def test_extending_a_prompt_replays_too(tokenizer: Tokenizer) -> None:
    for output in (SAMPLED, PLAIN):
        store = ReplayStore()
        prompt, ids, turn = sample(store, tokenizer, output, tools=TOOLS)
        more = sent_back(turn)[1:]
        later = Encoder().extend(prompt, more, restore=store.restore)
        so_far = prompt.token_ids(tokenizer) + ids
        assert later.parent is prompt
        assert later.token_ids(tokenizer)[: len(so_far)] == so_far


def test_without_a_store_the_tokens_differ(tokenizer: Tokenizer) -> None:
    prompt, ids, turn = sample(ReplayStore(), tokenizer, SAMPLED, tools=TOOLS)
    so_far = prompt.token_ids(tokenizer) + ids
    canonical = Encoder().encode(sent_back(turn), tools=TOOLS, effort="low")
    assert canonical.token_ids(tokenizer)[: len(so_far)] != so_far


def test_reasoning_that_a_client_dropped_comes_back(tokenizer: Tokenizer) -> None:
    store = ReplayStore()
    prompt, ids, turn = sample(store, tokenizer, SAMPLED, tools=TOOLS)
    messages = sent_back(turn, reasoning_content=None)
    so_far = prompt.token_ids(tokenizer) + ids
    assert encoded(store, messages, tools=TOOLS).token_ids(tokenizer)[: len(so_far)] == so_far


@pytest.mark.parametrize(
    "changes",
    [
        {"content": "Later."},
        {"reasoning_content": "I think otherwise."},
    ],
)
def test_edits_win_and_are_counted(changes: dict[str, Any], tokenizer: Tokenizer) -> None:
    store = ReplayStore()
    _, _, turn = sample(store, tokenizer, SAMPLED, tools=TOOLS)
    messages = sent_back(turn, **changes)
    plain = Encoder().encode(messages, tools=TOOLS, effort="low")
    assert encoded(store, messages, tools=TOOLS).text == plain.text
    assert (store.num_replayed, store.num_edited) == (0, 1)


def test_edited_arguments_win(tokenizer: Tokenizer) -> None:
    store = ReplayStore()
    _, _, turn = sample(store, tokenizer, SAMPLED, tools=TOOLS)
    turn.tool_calls[0].arguments = '{"n": 2}'
    assert 'string="false">2</' in encoded(store, sent_back(turn), tools=TOOLS).text
    assert store.num_edited == 1


def test_without_tools_the_reasoning_is_dropped_and_the_rest_replayed(
    tokenizer: Tokenizer,
) -> None:
    store = ReplayStore()
    _, _, turn = sample(store, tokenizer, PLAIN)
    text = encoded(store, sent_back(turn)).text
    assert f"<｜User｜>q<｜Assistant｜></think>\n\nAn answer.{tokens.EOS}<｜User｜>z" in text


def test_a_call_within_open_reasoning_is_replayed_only_with_it(tokenizer: Tokenizer) -> None:
    store = ReplayStore()
    output = SAMPLED.replace("</think>\n\nNow.", "")
    prompt, ids, turn = sample(store, tokenizer, output, tools=TOOLS)
    so_far = prompt.token_ids(tokenizer) + ids
    kept = encoded(store, sent_back(turn), tools=TOOLS).token_ids(tokenizer)
    assert kept[: len(so_far)] == so_far
    dropped = encoded(store, sent_back(turn)).text
    assert "<｜User｜>q<｜Assistant｜></think>\n\n<｜DSML｜tool_calls>" in dropped


def test_scopes_do_not_see_each_other(tokenizer: Tokenizer) -> None:
    store = ReplayStore()
    _, _, turn = sample(store, tokenizer, SAMPLED, scope="alice", tools=TOOLS)
    encoded(store, sent_back(turn), scope="bob", tools=TOOLS)
    assert store.num_replayed == 0
    encoded(store, sent_back(turn), scope="alice", tools=TOOLS)
    assert store.num_replayed == 1


def test_turns_outlive_the_process(tokenizer: Tokenizer, tmp_path: Path) -> None:
    with ReplayStore(tmp_path / "replay.db") as store:
        prompt, ids, turn = sample(store, tokenizer, SAMPLED, tools=TOOLS)
        num_bytes = store.num_bytes
    so_far = prompt.token_ids(tokenizer) + ids
    with ReplayStore(tmp_path / "replay.db") as store:
        assert store.num_bytes == num_bytes > 0
        later = encoded(store, sent_back(turn), tools=TOOLS)
        assert later.token_ids(tokenizer)[: len(so_far)] == so_far


def test_the_least_recently_used_turns_make_room(tokenizer: Tokenizer) -> None:
    probe = ReplayStore()
    sample(probe, tokenizer, SAMPLED, tools=TOOLS)
    store = ReplayStore(max_bytes=probe.num_bytes * 2 + 100)
    first, second = (sample(store, tokenizer, SAMPLED, tools=TOOLS)[2] for _ in range(2))
    encoded(store, sent_back(first), tools=TOOLS)
    sample(store, tokenizer, SAMPLED, tools=TOOLS)
    assert store.num_bytes <= store.max_bytes
    for turn, found in ((first, 1), (second, 0)):
        before = store.num_replayed
        encoded(store, sent_back(turn), tools=TOOLS)
        assert store.num_replayed - before == found


def test_a_file_of_another_format_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "replay.db"
    with sqlite3.connect(path) as database:
        database.execute("PRAGMA user_version = 7")
    database.close()
    with pytest.raises(ReplayError, match="format 7"):
        ReplayStore(path)


def test_cut_off_calls_are_not_remembered(tokenizer: Tokenizer) -> None:
    store = ReplayStore()
    sample(store, tokenizer, SAMPLED[:-60], tools=TOOLS)
    assert store.num_bytes == 0
