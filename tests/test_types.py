"""The exchanged data: validation and folding."""

import pytest
from hypothesis import given, strategies as st

from glmkit import Chunk, GenerationOptions, Message, Passage, Reply, Usage, UsageError


def test_a_dict_is_a_message():
    assert Message.of({"role": "user", "content": "hi"}) == Message("user", "hi")


@pytest.mark.parametrize(
    "value",
    [
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
    ],
)
def test_options_out_of_range_are_refused_by_name(bad):
    with pytest.raises(UsageError, match=next(iter(bad))):
        GenerationOptions(**bad)


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
