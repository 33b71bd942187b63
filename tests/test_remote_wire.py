"""What OpenAI's protocol says, read and written: calls in pieces, and whatever servers send."""

from __future__ import annotations

import json

import pytest
from hypothesis import HealthCheck, given, settings, strategies as st

from glmkit import Message, Reply, ToolCall
from glmkit.errors import ServerError
from glmkit.remote.faults import Refusal, TransientError, message_in, parsed
from glmkit.remote.line import Line
from glmkit.remote.wire import Reading, turns_of, whole_reply
from glmkit.texts import is_unicode


def read(*pieces: object) -> Reply:
    reading = Reading()
    chunks = [reading.push({"choices": [{"delta": each}]}) for each in pieces]
    reply = Reply.join(reading.finish())
    assert not any(chunks)
    return reply


def call(index=None, key=None, name=None, arguments=None):
    function = {"name": name, "arguments": arguments}
    given = {"index": index, "id": key}
    own = {each: value for each, value in given.items() if value is not None}
    return {**own, "function": {each: v for each, v in function.items() if v is not None}}


A, B = ToolCall("a", {"x": 1}), ToolCall("b", {})
CALLS = {
    "as OpenAI": (
        {"tool_calls": [call(0, "k", "a", "")]},
        {"tool_calls": [call(0, None, None, '{"x"')]},
        {"tool_calls": [call(0, None, None, ": 1}")]},
        {"tool_calls": [call(1, "l", "b", "{}")]},
    ),
    "whole, all numbered 0": (
        {"tool_calls": [call(0, "k", "a", '{"x": 1}')]},
        {"tool_calls": [call(0, "l", "b", "{}")]},
    ),
    "neither numbers nor ids": (
        {"tool_calls": [call(None, None, "a", '{"x": 1}'), call(None, None, "b", "")]},
    ),
    "ids alone": (
        {"tool_calls": [call(None, "k", "a", '{"x":')]},
        {"tool_calls": [call(None, "k", "a", "1}")]},
        {"tool_calls": [call(None, "l", "b")]},
    ),
    "arguments as an object": (
        {"tool_calls": [call(0, "k", "a", {"x": 1}), call(1, "l", "b", {})]},
    ),
    "mixed up": (
        {"tool_calls": [call(0, "k", "a"), call(1, "l", "b")]},
        {"tool_calls": [call(1, None, None, "{}"), call(0, None, None, '{"x": 1}')]},
    ),
}


@pytest.mark.parametrize("pieces", CALLS.values(), ids=CALLS)
def test_calls_are_put_together(pieces):
    reply = read(*pieces)
    assert reply.tool_calls == (A, B)
    assert (reply.finish_reason, reply.text) == ("tool_calls", "")


def test_the_older_way_of_calling():
    assert read({"function_call": {"name": "a", "arguments": '{"x": 1}'}}).tool_calls == (A,)


@pytest.mark.parametrize(
    "arguments", ["{", "[1]", '{"x": 1} and more', "{" * 3000, '["\\ud83d"]', '{"x": "\\ud83d"}']
)
def test_a_call_that_is_none_stays_text(arguments):
    reply = read({"tool_calls": [call(0, "k", "a", arguments), call(1, "l", "b", "{}")]})
    assert reply.tool_calls == (B,)
    assert reply.text == "a\n" + arguments


def test_results_name_the_calls_that_they_answer():
    turns = turns_of(
        [
            Message("system", "", tools=({"type": "function", "function": {"name": "a"}},)),
            Message("user", "go"),
            Message("assistant", "well", tool_calls=(A, B)),
            Message("observation", "1"),
            Message("tool", "2"),
            Message("assistant", "", tool_calls=(A,)),
            Message("tool", "3"),
        ]
    )
    assert turns["tools"] == [{"type": "function", "function": {"name": "a"}}]
    said = turns["messages"]
    assert [each["role"] for each in said] == "user assistant tool tool assistant tool".split()
    assert [each["id"] for each in said[1]["tool_calls"]] == ["call_0", "call_1"]
    assert [each.get("tool_call_id") for each in said] == [
        None, None, "call_0", "call_1", None, "call_2",
    ]  # fmt: skip
    assert said[1]["content"] == "well" and said[4]["content"] is None


UNHURRIED = settings(max_examples=50, deadline=None, suppress_health_check=[HealthCheck.too_slow])
KEYS = (
    "choices usage delta message content tool_calls function_call function name arguments index id "
    "finish_reason prompt_tokens completion_tokens error detail code loc msg text refusal"
).split()
JSON = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-2, 2)
    | st.floats()
    | st.sampled_from(["", "stop", "a", "{}", '{"a": 1}', "\ud83d", "\ude00", "汉"]),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(KEYS), inner, max_size=4)
    ),
    max_leaves=12,
)
DELTA = st.dictionaries(st.sampled_from(["content", "tool_calls", "function_call"]), JSON)
CHOICE = st.dictionaries(st.sampled_from(["delta", "message", "index"]), DELTA | JSON)
PIECE = st.fixed_dictionaries({"choices": st.lists(CHOICE, max_size=2) | JSON, "usage": JSON})


@UNHURRIED
@given(st.lists(PIECE, max_size=4))
def test_any_json_is_read_as_an_answer_or_as_nothing(pieces):
    reading = Reading()
    text = "".join(map(reading.push, pieces))
    reply = Reply.join(reading.finish())
    assert is_unicode(text + reply.text)
    assert reply.usage.prompt_tokens >= 0 and reply.usage.completion_tokens >= 0
    for each in reply.tool_calls:
        Message("assistant", reply.text, tool_calls=(each,))
    for piece in pieces:
        assert isinstance(whole_reply(piece, ()), Reply)


@UNHURRIED
@given(st.sampled_from([400, 401, 403, 404, 413, 422, 429, 500, 503, 599]), JSON, st.booleans())
def test_any_refusal_is_one_line_without_the_key(status, body, plain):
    text = json.dumps(body) if plain else f"\n{body} sk-1\n"
    said = message_in(text + "sk-1", hidden=lambda each: each.replace("sk-1", "***"))
    assert len(said) <= 300 and "\n" not in said and "sk-1" not in said
    error = Refusal(status, said, "http://h").error({"top_k": 1})
    assert isinstance(error, (ServerError, TransientError))
    assert str(status) in str(error) or "refuses" in str(error)


def test_closing_twice_is_closing():
    from glmkit import Server

    line = Line(Server("http://127.0.0.1:9"))
    line.close()
    line.close()


def test_deep_json_is_none():
    assert parsed("[" * 100_000) is None


def test_odds_that_are_no_numbers_are_left_out():
    wrong = ["1e999", "-Infinity", "NaN", "1" + "0" * 400, "true", "null", '"1"', "[1]"]
    told = ",".join(f'{{"token": "x", "logprob": {each}}}' for each in [*wrong, "-1", "-0.5"])
    content = json.loads(f'[{{"token": "y", "logprob": 0, "top_logprobs": [{told}]}}, {told}]')
    answer = {"choices": [{"message": {"content": "yx"}, "logprobs": {"content": content}}]}
    first, *others = whole_reply(answer, ()).logprobs
    assert [each.logprob for each in others] == [each.logprob for each in first.top] == [-1, -0.5]
