from __future__ import annotations

import json
from functools import cache
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings, strategies as st

from glmkit.dataset.samples import Sample
from glmkit.errors import CheckpointError, UsageError
from glmkit.models.prompts import FORMATS, Renderer, encode
from glmkit.models.tiny import IDS, ORIGINAL, tiny_checkpoint
from glmkit.models.tokenizers import Tokenizer
from glmkit.training.encoding import SampleEncoder, spans
from glmkit.training.examples import Example
from glmkit.types import Message, ToolCall

LAYOUTS = (*ORIGINAL, "hub")
CHAINED = ("chatglm3", "glm4-9b", "hub")
"""Formats whose later prompts say what a turn said."""
TEXTS = st.text(st.sampled_from("ab \n你<|user|>:"), min_size=1, max_size=12)


@pytest.fixture(scope="module")
def opened(tmp_path_factory):
    folders = {
        each: tiny_checkpoint(tmp_path_factory.mktemp("tiny") / each, layout=each)
        for each in LAYOUTS
    }

    @cache
    def encoder(layout: str, **options: object) -> SampleEncoder:
        return SampleEncoder.open(folders[layout], **options)

    return encoder


def talk(*texts: str, told: str = "", weights: tuple[float, ...] = ()) -> Sample:
    """Return a sample of questions and answers in turn."""
    messages = [Message("system", told)] if told else []
    messages += [Message("assistant" if at % 2 else "user", text) for at, text in enumerate(texts)]
    own = iter(weights or (1.0,) * len(texts))
    return Sample(
        tuple(messages), tuple(next(own) if m.role == "assistant" else 0.0 for m in messages)
    )


def learnt(example: Example) -> list[list[int]]:
    """Return the runs of tokens that are learnt."""
    runs: list[list[int]] = []
    before = False
    for number, weight in zip(example.ids.tolist(), example.weights.tolist(), strict=True):
        if weight and not before:
            runs.append([])
        if weight:
            runs[-1].append(number)
        before = bool(weight)
    return runs


@pytest.mark.parametrize("layout", LAYOUTS)
@given(texts=st.lists(TEXTS, min_size=2, max_size=8).filter(lambda each: len(each) % 2 == 0))
@settings(max_examples=12, deadline=None)
def test_what_is_learnt_stands_behind_what_inference_sees(opened, layout, texts):
    encoder = opened(layout)
    sample = talk(*texts, told="Be kind.")
    rows = encoder.encode([sample])[0].rows
    assert len(rows) <= len(texts) // 2
    found = 0
    for at in range(2, len(sample.messages), 2):
        answer = encode(encoder.renderer.format.answer(sample.messages[at]), _vocabulary(encoder))
        prompt = encoder.renderer.render(sample.messages[:at], room=10_000).ids
        whole = [*prompt, *answer]
        row = next(
            each
            for each in rows
            if each.ids[: len(whole)].tolist() == whole
            and each.weights[len(prompt) : len(whole)].all()
        )
        assert not row.weights[len(prompt) - 1] or not answer
        assert int(row.ids[len(whole)]) in encoder.stops
        assert row.weights[len(whole)] == 1
        found += len(answer) + 1
    # And nothing else is.
    assert found == sum(int(each.weights.sum()) for each in rows)


def _vocabulary(encoder: SampleEncoder) -> Tokenizer:
    return encoder.renderer.tokenizer


@pytest.mark.parametrize("layout", LAYOUTS)
def test_one_row_teaches_several_turns_where_the_format_lets_it(opened, layout):
    rows = opened(layout).encode([talk("a", "bc", "d", "ef", "g", "hi")])[0].rows
    assert len(rows) == (1 if layout in CHAINED else 3)
    assert sum(len(learnt(each)) for each in rows) == 3


def test_the_rows_of_each_generation(opened):
    sample = talk("ab", "c", "d", "e")
    _, second = opened("chatglm").encode([sample])[0].rows
    text = list("[Round 0]\n问：ab\n答：c\n[Round 1]\n问：d\n答：".encode())
    blank, sop, eop = (IDS[each] for each in ("[gMASK]", "<sop>", "<eop>"))
    assert second.ids.tolist()[:-4] == _bytes(opened("chatglm"), text)
    assert second.ids.tolist()[-4:-2] == [blank, sop]
    assert learnt(second) == [[*_bytes(opened("chatglm"), b"e"), eop]]
    (row,) = opened("glm4-9b").encode([sample])[0].rows
    user, assistant = IDS["<|user|>"], IDS["<|assistant|>"]
    said = _bytes(opened("glm4-9b"), b"\n")
    c, e = _bytes(opened("glm4-9b"), b"ce")
    assert learnt(row) == [[*said, c, user], [*said, e, user]]
    assert row.ids.tolist().count(assistant) == 2


def _bytes(encoder: SampleEncoder, text: bytes | list[int]) -> list[int]:
    return encoder.renderer.tokenizer.encode(bytes(text).decode())


def test_weights_are_those_of_the_messages(opened):
    (row,) = opened("chatglm3").encode([talk("a", "b", "c", "d", weights=(0.25, 2.0))])[0].rows
    assert sorted(set(row.weights.tolist())) == [0, 0.25, 2]
    assert np.count_nonzero(row.weights == 0.25) == np.count_nonzero(row.weights == 2) == 3
    (row,) = opened("chatglm2").encode([talk("a", "b", "c", "d", weights=(0.0, 1.0))])[0].rows
    assert len(learnt(row)) == 1


def test_calls_of_tools_end_where_their_answer_begins(opened):
    tools = ({"name": "f", "parameters": {}},)
    sample = Sample(
        (
            Message("system", "", tools=tools),
            Message("user", "q"),
            Message("assistant", "", tool_calls=(ToolCall("f", {"x": 1}),)),
            Message("observation", "2"),
            Message("assistant", "two"),
        ),
        (0, 0, 1, 0, 1),
    )
    for layout in ("chatglm3", "glm4-9b"):
        (row,) = opened(layout).encode([sample])[0].rows
        call, answer = learnt(row)
        assert call[-1] == IDS["<|observation|>"]
        assert opened(layout).renderer.tokenizer.decode(call[:-1]).startswith("f\n")
        assert answer[-1] != IDS["<|observation|>"]
    for layout in ("chatglm", "chatglm2"):
        encoded = opened(layout).encode([sample])[0]
        assert not encoded.rows
        assert "tools" in encoded.reason


def test_the_system_text_is_said_where_a_sample_has_none(opened):
    plain, own = talk("a", "b"), talk("a", "b", told="Mine.")
    for layout in LAYOUTS:
        encoder = opened(layout, system="Ours.")
        tokenizer = encoder.renderer.tokenizer
        texts = [tokenizer.decode(encoder.encode([each])[0].rows[0].ids) for each in (plain, own)]
        assert "Ours." in texts[0]
        assert "Ours." not in texts[1]
        assert "Mine." in texts[1]


def test_the_default_says_what_it_says_in_chats(default_model_path):
    encoder = SampleEncoder.open(default_model_path)
    (row,) = encoder.encode([talk("Who are you?", "I am Bob.", "Really?", "Yes.")])[0].rows
    text = "".join(each.text for each in spans(row, encoder.renderer.tokenizer))
    assert text.startswith(f"<|im_start|>system\n{encoder.renderer.system}<|im_end|>")
    told = [each for each in spans(row, encoder.renderer.tokenizer) if each.weight]
    assert [each.text for each in told] == ["I am Bob.<|im_end|>", "Yes.<|im_end|>"]


def test_long_conversations_become_several_rows(opened):
    texts = [f"{'question' if at % 2 == 0 else 'answer'} {at}" for at in range(40)]
    for layout in LAYOUTS:
        encoder = opened(layout, max_length=150)
        encoded = encoder.encode([talk(*texts, told="S.")])[0]
        assert sum(len(learnt(each)) for each in encoded.rows) == 20
        assert max(map(len, encoded.rows)) <= 150
        assert encoded.parted
        assert not encoded.cut
        assert len(encoded.rows) == 20 if layout not in CHAINED else len(encoded.rows) < 14
        for row in encoded.rows:
            assert "S." in encoder.renderer.tokenizer.decode(row.ids)
            assert int(row.ids[-1]) in encoder.stops


@pytest.mark.parametrize("layout", LAYOUTS)
def test_an_answer_that_is_cut_has_no_end(opened, layout):
    encoder = opened(layout, max_length=60)
    encoded = encoder.encode([talk("q", "x" * 100)])[0]
    (row,) = encoded.rows
    assert encoded.cut == 1
    assert len(row) == 60
    assert int(row.ids[-1]) not in encoder.stops
    (fits,) = opened(layout).encode([talk("q", "x" * 100)])[0].rows
    (exact,) = opened(layout, max_length=len(fits)).encode([talk("q", "x" * 100)])[0].rows
    assert exact.ids.tolist() == fits.ids.tolist()
    (cut,) = opened(layout, max_length=len(fits) - 1).encode([talk("q", "x" * 100)])[0].rows
    assert cut.ids.tolist() == fits.ids.tolist()[:-1]


def test_what_leaves_no_room_for_an_answer_is_told(opened):
    encoder = opened("glm4-9b", max_length=60)
    long, good = talk("q" * 100, "a"), talk("q", "a")
    encoded, fine = encoder.encode([long, good])
    assert not encoded.rows
    assert "leaves no room for its answer within max_length 60" in encoded.reason
    assert len(fine.rows) == 1
    (skipped,) = opened("glm4-9b", max_length=60, overlong="skip").encode([talk("q", "x" * 100)])
    assert not skipped.rows
    assert "it takes 108 tokens, and max_length is 60" in skipped.reason


def test_wrong_options_and_folders_are_refused(opened, tmp_path: Path):
    with pytest.raises(UsageError, match="overlong must be truncate or skip, got 'cut'"):
        opened("chatglm2", overlong="cut")
    folder = tiny_checkpoint(tmp_path / "bare", vocabulary=False)
    with pytest.raises(CheckpointError, match="no vocabulary or chat format"):
        SampleEncoder.open(folder)


PUBLISHED = {
    "chatglm-6b": ("chatglm", "<eop>"),
    "chatglm2-6b": ("chatglm2", "<eos>"),
    "chatglm3-6b": ("chatglm3", "<eos>"),
    "glm-4-9b": ("glm4", "<|user|>"),
}


@pytest.mark.parametrize("name", PUBLISHED)
def test_rows_begin_as_the_published_prompts_do(shared_reference: Path, name: str):
    family, end = PUBLISHED[name]
    tokenizer = Tokenizer.open(shared_reference / "tokenizers" / name, family=family)
    assert tokenizer is not None
    renderer = Renderer(tokenizer, FORMATS[family])
    stop = tokenizer.special(end)
    stops = frozenset(map(tokenizer.special, renderer.format.stops))
    chats = json.loads((shared_reference / "expected" / "prompts.json").read_text())[name]["chat"]
    seen = 0
    for case in chats.values():
        messages = _messages(case)
        if messages is None:
            continue
        question = (*messages, Message("assistant", "晚上好"))
        weights = (*[0.0] * len(messages), 1.0)
        encoder = SampleEncoder(renderer, stops, 8192)
        (row,) = encoder.encode([Sample(question, weights)])[0].rows
        ids = np.array(case["input_ids"]).ravel().tolist()
        assert row.ids.tolist()[: len(ids)] == ids
        answer = row.ids.tolist()[len(ids) :]
        assert answer[-1] == stop
        assert answer[:-1] == encode(renderer.format.answer(question[-1]), tokenizer)
        if family in ("chatglm", "chatglm2"):  # a row of the published fine-tuning code
            bare = ids[: -len(tokenizer.suffix) or None][len(tokenizer.prefix) :]
            assert row.ids.tolist() == tokenizer.wrap(bare, tokenizer.encode("晚上好"))
        seen += 1
    assert seen >= 2


def _messages(case: dict) -> list[Message] | None:
    """Return the conversation of a recorded prompt; None where it is not of plain turns."""
    if "query" in case:
        turns = [text for pair in case.get("history", ()) for text in pair]
        roles = ("user", "assistant")
        texts = [*turns, case["query"]]
        return [Message(roles[at % 2], text) for at, text in enumerate(texts)]
    entries = case["messages"]
    plain = all(
        each["role"] in ("user", "assistant", "system")
        and each["content"]
        and "<|" not in each["content"]  # the published code reads it as a token
        and not each.get("metadata")
        and not each.get("tools")
        for each in entries
    )
    if not plain or entries[-1]["role"] != "user":
        return None
    return [Message(each["role"], each["content"]) for each in entries]


@given(
    layout=st.sampled_from(LAYOUTS),
    texts=st.lists(TEXTS, min_size=2, max_size=10).filter(lambda each: len(each) % 2 == 0),
    weights=st.lists(st.sampled_from([0.0, 0.5, 1.0]), min_size=5, max_size=5),
    most=st.integers(4, 90),
    overlong=st.sampled_from(["truncate", "skip"]),
)
@settings(max_examples=80, deadline=None)
def test_rows_of_any_length_are_sound(opened, layout, texts, weights, most, overlong):
    answers = len(texts) // 2
    if not any(weights[:answers]):
        weights = [1.0] * 5
    sample = talk(*texts, weights=tuple(weights))
    encoder = opened(layout, max_length=most, overlong=overlong)
    whole = opened(layout).encode([sample])[0]
    encoded = encoder.encode([sample])[0]
    fits = all(len(each) <= most for each in whole.rows)
    if fits:
        assert [each.ids.tolist() for each in encoded.rows] == [
            each.ids.tolist() for each in whole.rows
        ]
    elif overlong == "skip":
        assert not encoded.rows
    assert encoded.rows or encoded.reason
    assert all(2 <= len(each) <= most and each.weights[1:].any() for each in encoded.rows)
    ended = sum(int(each.ids[-1]) in encoder.stops for each in encoded.rows)
    assert len(encoded.rows) - ended <= encoded.cut
