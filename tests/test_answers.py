"""Answers as they come: text, tool calls, stop strings; and what ends and samples them."""

from __future__ import annotations

import json

import pytest
import tiny_vocabularies as tiny
import torch

from glmkit.errors import CheckpointError
from glmkit.models.formats import FORMATS
from glmkit.models.tiny import TinyLayout, tiny_checkpoint
from glmkit.models.tokenizers import Detokenizer, Tokenizer
from glmkit.runtime.answers import Answer, Spelled
from glmkit.runtime.decode import Row
from glmkit.runtime.loading import load_local
from glmkit.runtime.odds import Odds
from glmkit.runtime.sampling import StopText, greedy
from glmkit.runtime.settings import Settings
from glmkit.types import Chunk, GenerationOptions, Message, Reply, ToolCall

pytestmark = pytest.mark.usefixtures("one_thread")

TOOLS = [Message("system", "", tools=({"name": "track"},)), Message("user", "?")]
FAMILIES = {
    "chatglm": tiny.write_ice_text,
    "chatglm2": lambda folder: tiny.write_pieces(folder, "chatglm2-6b"),
    "chatglm3": tiny.write_pieces,
    "glm4": tiny.write_ranks,
}


@pytest.fixture(scope="module")
def vocabularies(tmp_path_factory):
    return {
        family: Tokenizer.open(write(tmp_path_factory.mktemp(family)))
        for family, write in FAMILIES.items()
    }


def told(family, tokenizer, text, *, history=TOOLS[1:], stop=(), finish="stop"):
    """Return the chunks of an answer whose tokens are those of ``text``."""
    chat_format = FORMATS[family]
    row = Row([1, 2, 3], 100, frozenset(), greedy)
    answer = Answer(
        row,
        Detokenizer(tokenizer, skip_special=chat_format.skip_special),
        StopText(stop),
        (),
        chat_format.reader(history),
    )
    chunks = []
    ids = tokenizer.encode(text, specials=True)
    for at, token in enumerate(ids):
        row.new.append(token)
        row.finish = finish if at == len(ids) - 1 else None
        chunks.append(Chunk(answer.advance()))
        if row.finish is not None:
            break
    return [*chunks, answer.last()]


@pytest.mark.parametrize("family", FAMILIES)
def test_every_family_streams_what_it_says(vocabularies, family):
    chunks = told(family, vocabularies[family], "\n你好 [[训练时间]] 😀,世界 ")
    comma = "，" if family == "chatglm" else ","
    reply = Reply.join(chunks)
    assert reply.text == f"你好 2023年 😀{comma}世界"
    assert reply.finish_reason == "stop" and not reply.tool_calls
    assert sum(bool(each.text) for each in chunks) > 3
    assert "\ufffd" not in "".join(each.text for each in chunks)


@pytest.mark.parametrize("family", FAMILIES)
def test_an_answer_that_is_cut_off_keeps_its_last_token(vocabularies, family):
    reply = Reply.join(told(family, vocabularies[family], "one two", finish="length"))
    assert (reply.text, reply.finish_reason) == ("one two", "length")


CALLS = {
    "chatglm3": "track\n```python\ntool_call(symbol='1')\n```",
    "glm4": 'track\n{"symbol": "1"}',
}


@pytest.mark.parametrize("family", CALLS)
def test_a_call_comes_with_the_last_chunk_only(vocabularies, family):
    tokenizer = vocabularies[family]
    for before, said in (("", ""), ("\nI look.<|assistant|>", "I look.")):
        chunks = told(family, tokenizer, before + CALLS[family], history=TOOLS)
        assert "".join(each.text for each in chunks) == said
        assert [each.tool_calls for each in chunks[:-1]] == [()] * (len(chunks) - 1)
        assert chunks[-1].tool_calls == (ToolCall("track", {"symbol": "1"}),)
        assert chunks[-1].finish_reason == "tool_calls"


@pytest.mark.parametrize("family", CALLS)
def test_half_a_call_is_text(vocabularies, family):
    half = CALLS[family][:-6]
    reply = Reply.join(told(family, vocabularies[family], half, history=TOOLS, finish="length"))
    assert (reply.text, reply.finish_reason, reply.tool_calls) == (half, "length", ())


@pytest.mark.parametrize("family", CALLS)
def test_nothing_is_called_where_nothing_was_offered(vocabularies, family):
    reply = Reply.join(told(family, vocabularies[family], CALLS[family]))
    assert (reply.text, reply.tool_calls) == (CALLS[family], ())


@pytest.mark.parametrize("family", FAMILIES)
def test_a_stop_string_ends_what_is_shown(vocabularies, family):
    chunks = told(family, vocabularies[family], "one, two, three", stop=("two",), finish="length")
    reply = Reply.join(chunks)
    assert (reply.text, reply.finish_reason) == ("one, ", "stop")


def folder_with(tmp_path, **generation):
    folder = tmp_path / "model"
    folder.mkdir(exist_ok=True)
    (folder / "config.json").write_text(json.dumps({"eos_token_id": [2, None, True]}))
    if generation:
        (folder / "generation_config.json").write_text(json.dumps(generation))
    return folder


@pytest.mark.parametrize("family", FAMILIES)
def test_settings_are_the_published_ones_where_the_folder_says_nothing(
    tmp_path, vocabularies, family
):
    tokenizer = vocabularies[family]
    found = Settings.open(folder_with(tmp_path), chat_format=FORMATS[family], tokenizer=tokenizer)
    names = {"chatglm": ("<eop>",), "chatglm2": (), "chatglm3": ("<|user|>", "<|observation|>")}
    names["glm4"] = ("<|endoftext|>", "<|user|>", "<|observation|>")
    assert found.stop_ids == {2, *map(tokenizer.special, names[family])}
    assert found.temperature == (0.95 if family == "chatglm" else 0.8)
    assert found.top_p == (0.7 if family == "chatglm" else 0.8)


def test_what_the_folder_says_wins(tmp_path, vocabularies):
    third = {"chat_format": FORMATS["chatglm3"], "tokenizer": vocabularies["chatglm3"]}
    said = Settings.open(folder_with(tmp_path, temperature=0.3, top_k=5), **third)
    assert (said.temperature, said.top_p, said.top_k) == (0.3, 0.8, 5)
    greedily = Settings.open(folder_with(tmp_path, do_sample=False), **third)
    assert greedily.temperature == 0
    assert Settings.open(folder_with(tmp_path)).stop_ids == {2}
    with pytest.raises(CheckpointError, match="top_p"):
        Settings.open(folder_with(tmp_path, top_p="much"), **third)


LAYOUTS: dict[str, TinyLayout] = {
    "chatglm": "chatglm",
    "chatglm2": "chatglm2",
    "chatglm3": "chatglm3",
    "glm4": "glm4-9b",
}


@pytest.mark.parametrize("family", LAYOUTS)
def test_a_model_chats_in_the_format_of_its_family(tmp_path, family):
    folder = tiny_checkpoint(tmp_path / "model", layout=LAYOUTS[family])
    model = load_local(folder, device="cpu", family=family)
    turns = [Message("user", "你好"), Message("assistant", "Hello."), Message("user", "Why?")]
    options = GenerationOptions(max_tokens=6, temperature=0)
    chunks = list(model.stream(turns, options))
    reply = Reply.join(chunks)
    written = FORMATS[family].pieces(turns, "")
    assert reply.usage.prompt_tokens == len(
        [each for piece in written for each in _ids(model.tokenizer, piece)]
    )
    assert model.reply(turns, options) == reply
    assert list(model.batch([turns, turns[:1]], options))[0] == reply
    assert reply.usage.completion_tokens == 6 and reply.finish_reason == "length"


def _ids(tokenizer, piece):
    return tokenizer.encode(piece) if isinstance(piece, str) else [tokenizer.special(piece.name)]


def test_a_vocabulary_that_is_too_large_for_the_model_is_refused(tmp_path):
    folder = tiny_checkpoint(tmp_path / "model", layout="chatglm3", vocabulary=False)
    tiny.write_pieces(folder)
    with pytest.raises(CheckpointError, match="tokenizer.model belongs to another model"):
        load_local(folder, device="cpu")


@pytest.mark.parametrize("family", FAMILIES)
def test_odds_spell_what_is_said(vocabularies, family):
    tokenizer = vocabularies[family]
    texts = ("Hello,  world", Detokenizer(tokenizer)), (' {"a": 1}', Spelled(tokenizer, " "))
    for text, reading in texts:
        odds = Odds(greedy, tokenizer, 1)
        row = Row([1], 100, frozenset(), odds)
        answer = Answer(row, reading, StopText(()), ())
        chunks = []
        for token in tokenizer.encode(text):
            row.new.append(odds(torch.zeros(tokenizer.size).index_fill(0, torch.tensor(token), 9)))
            chunks.append(answer.chunk(answer.advance()))
        row.finish = "stop"
        reply = Reply.join([*chunks, Chunk(answer.advance()), answer.last()])
        assert b"".join(each.bytes for each in reply.logprobs).decode() == reply.text
        assert "".join(each.token for each in reply.logprobs) == reply.text
        assert [each.top[0].bytes for each in reply.logprobs] == [
            each.bytes for each in reply.logprobs
        ]
