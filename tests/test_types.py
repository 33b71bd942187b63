"""The exchanged data: validation and folding."""

import math

import pytest
from hypothesis import given, strategies as st

from glmkit import Chunk, GenerationOptions, Message, Passage, Reply, Usage, UsageError
from glmkit.texts import readable
from glmkit.types import ToolCall


def test_a_dict_is_a_message():
    assert Message.of({"role": "user", "content": "hi"}) == Message("user", "hi")


SCHEMA = {"type": "function", "function": {"name": "weather", "parameters": {}}}
CALL = {"id": "call_1", "type": "function"}


def test_a_dict_may_bring_tools_and_calls_as_openai_writes_them():
    system = Message.of({"role": "system", "content": "", "tools": [SCHEMA]})
    assert system.tools == (SCHEMA,)
    function = {"name": "weather", "arguments": '{"city": "北京"}'}
    asked = Message.of(
        {"role": "assistant", "content": None, "tool_calls": [{**CALL, "function": function}]}
    )
    assert asked == Message("assistant", "", tool_calls=(ToolCall("weather", {"city": "北京"}),))
    answer = {"role": "tool", "content": "20", "tool_call_id": "call_1", "name": "weather"}
    assert Message.of(answer) == Message("tool", "20")
    assert ToolCall.of({"name": "weather"}) == ToolCall.of({"name": "weather", "arguments": ""})


@pytest.mark.parametrize(
    "call",
    [
        "weather",
        {**CALL, "function": "weather"},
        {"arguments": "{}"},
        {"name": "weather", "arguments": "{"},
        {"name": "weather", "arguments": "[1]"},
        {"name": "weather", "arguments": "[" * 100_000},
        {"name": "weather", "arguments": 1},
    ],
)
def test_what_is_no_call_is_refused(call):
    with pytest.raises(UsageError, match="tool call"):
        Message.of({"role": "assistant", "content": "", "tool_calls": [call]})


HALF = "a\ud83d"


@pytest.mark.parametrize(
    "message",
    [
        {"role": "user", "content": HALF},
        {"role": "system", "content": HALF},
        {"role": "system", "content": "", "tools": [{"name": "f", "x": [{"y": [HALF]}]}]},
        {"role": "system", "content": "", "tools": [{"name": "f", "x": {HALF: 1}}]},
        {"role": "user", "content": "x", "passages": (Passage(HALF, HALF),)},
        {"role": "assistant", "content": "", "tool_calls": [{"name": HALF}]},
        {"role": "assistant", "content": "", "tool_calls": [ToolCall("f", {"x": {"y": HALF}})]},
    ],
)
def test_half_a_character_is_refused_wherever_it_is(message):
    with pytest.raises(UsageError, match=r"no valid Unicode: '\\ud83d' at 1 is half") as caught:
        Message.of(message)
    str(caught.value).encode()


def test_whole_characters_and_deep_tools_are_taken():
    deep = {"name": "f"}
    for _ in range(5_000):
        deep = {"of": [deep]}
    assert Message("system", "\U0001f600 你 \ufffd \x00", tools=(deep,)).tools[0] is deep


@given(st.text(st.characters(exclude_categories=())))
def test_any_string_can_be_made_readable(text):
    try:
        text.encode()
    except UnicodeEncodeError:
        with pytest.raises(UsageError, match="Unicode"):
            Message("user", text)
    else:
        assert Message("user", text).content == text == readable(text)
    assert len(Message("user", readable(text)).content) == len(text)


def test_tools_are_schemas():
    with pytest.raises(UsageError, match="JSON schemas"):
        Message("system", "", tools=("weather",))


@pytest.mark.parametrize(
    "value",
    [
        {"role": "assistant", "content": None, "tool_calls": []},
        {"role": "user"},
        {"role": "user", "content": "x", "extra": 1},
        {"role": "boss", "content": "x"},
        {"role": "user", "content": None},
        "text",
    ],
)
def test_what_is_no_message_is_refused(value):
    with pytest.raises(UsageError):
        Message.of(value)


@pytest.mark.parametrize(
    "bad",
    [
        {"max_tokens": 0},
        {"max_tokens": "many"},
        {"top_p": "0.5"},
        {"seed": True},
        {"temperature": -1},
        {"top_p": 0.0},
        {"top_k": -1},
        {"repetition_penalty": 0},
        {"stop": ("",)},
        {"stop": 5},
        {"stop": {"END": 1}},
        {"max_tokens": 1.5},
        {"max_tokens": None},
        {"max_tokens": 2**40},
        {"top_k": 2.0},
        {"top_k": math.inf},
        {"seed": 1.5},
        {"seed": 2**63},
        {"seed": -(2**63) - 1},
        {"temperature": 1e-320},
        {"temperature": math.nan},
        {"temperature": math.inf},
        {"temperature": False},
        {"top_p": math.nan},
        {"repetition_penalty": 1e-320},
        {"repetition_penalty": math.inf},
        {"repetition_penalty": 10**400},
    ],
)
def test_options_out_of_range_are_refused_by_name(bad):
    with pytest.raises(UsageError, match=next(iter(bad))):
        GenerationOptions(**bad)


@pytest.mark.parametrize(
    "good",
    [
        {"seed": -(2**63)},
        {"seed": 2**63 - 1},
        {"temperature": 0},
        {"temperature": 1e-6},
        {"temperature": 100},
        {"repetition_penalty": 0.01},
        {"repetition_penalty": 100},
        {"top_p": 1},
        {"top_k": 2**31 - 1},
    ],
)
def test_options_at_their_bounds_pick_tokens(good):
    import torch

    from glmkit.runtime.sampling import make_sampler

    GenerationOptions(**good)
    pick = make_sampler(**{"temperature": 1.0, **good}, prompt=(0, 1))
    assert pick(torch.tensor([-60_000.0, 60_000.0, 0.0])) in (0, 1, 2)


def test_one_stop_text_may_be_given_bare():
    assert GenerationOptions(stop="END").stop == ("END",)


@given(st.lists(st.text()), st.sampled_from(["stop", "length"]))
def test_joining_keeps_every_character_and_the_end(texts, reason):
    source = Passage("t", "p")
    end = Chunk("", reason, Usage(3, len(texts)), (source,))
    reply = Reply.join([*map(Chunk, texts), end])
    assert reply == Reply("".join(texts), reason, Usage(3, len(texts)), (source,))


def test_a_stream_without_an_end_was_cancelled():
    assert Reply.join([Chunk("half")]).finish_reason == "cancelled"
