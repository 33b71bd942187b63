"""Extractive answers: verbatim sentences, the right ones, each with its citation."""

import re

import pytest
from hypothesis import given, strategies as st

from glmkit import Message, Passage
from glmkit.testing import HashEncoder
from glmkit_knowledge.extract import ExtractiveModel, choose
from glmkit_knowledge.sentences import Read, SentenceVectors, split_sentences

RIVERS = Passage(
    "The Nile is the longest river of Africa. It is 6,650 km long. Crocodiles live there.",
    "rivers.md",
    "Rivers > Nile, line 3",
    0.9,
)
LAKES = Passage("贝加尔湖在西伯利亚。湖水最深处有 1642 米。", "lakes.md", "line 1", 0.5)


@pytest.fixture
def vectors() -> SentenceVectors:
    return SentenceVectors(HashEncoder())


def test_sentences_end_where_both_languages_end_them():
    text = (
        "Pi is 3.14, says Dr. Li. 长江是很长的河。这真的可以相信吗？Yes, it is so! By J. S. Bach."
        "\n\nA new paragraph\nwith wrapped lines\n- the first item\n- the second item"
    )
    assert split_sentences(text) == [
        "Pi is 3.14, says Dr. Li.",
        "长江是很长的河。",
        "这真的可以相信吗？",
        "Yes, it is so! By J. S. Bach.",
        "A new paragraph\nwith wrapped lines",
        "- the first item",
        "- the second item",
    ]


def test_scraps_stay_with_their_neighbours():
    assert split_sentences("不会。文件都留在这台机器上。") == ["不会。文件都留在这台机器上。"]
    assert split_sentences("Files stay on this machine. Yes.") == [
        "Files stay on this machine. Yes."
    ]
    assert split_sentences("No.") == ["No."]
    assert split_sentences("... --- !") == []


@given(st.text(alphabet="aB1 .。!？\n-长", max_size=60))
def test_sentences_are_substrings_in_order_and_lose_no_letter(text):
    at = 0
    for sentence in split_sentences(text):
        at = text.index(sentence, at) + len(sentence)
    kept = "".join(split_sentences(text))
    assert [c for c in kept if c.isalnum()] == [c for c in text if c.isalnum()]


def test_a_sentence_is_encoded_below_its_heading_and_only_once():
    calls = []

    class Counting(HashEncoder):
        def encode(self, texts, *, kind="passage"):
            calls.extend(texts)
            return super().encode(texts, kind=kind)

    vectors = SentenceVectors(Counting())
    for _ in range(2):
        [(sentences, rows)] = vectors.of([Read.of(RIVERS)])
        assert len(sentences) == len(rows) == 3
    assert calls[0] == "Rivers > Nile: The Nile is the longest river of Africa."
    assert len(calls) == 3


def test_the_sentence_that_answers_is_quoted_with_its_number(vectors):
    model = ExtractiveModel(vectors)
    reply = model.reply([Message("user", "湖水最深处有多少米?", (RIVERS, LAKES))])
    assert reply.text == "湖水最深处有 1642 米。 [2]"
    assert reply.finish_reason == "stop"
    assert reply.usage.completion_tokens == 0


def test_a_sentence_that_points_back_brings_the_one_before(vectors):
    quotes = choose("How long, in km, is it long?", [RIVERS], vectors)
    assert [quote.text for quote in quotes][:2] == [
        "The Nile is the longest river of Africa.",
        "It is 6,650 km long.",
    ]


def test_the_sentence_that_is_pointed_back_to_comes_first():
    encoder = HashEncoder()
    text = "世界上最大的河流是亚马孙河。无论按流量还是按流域面积计算，它都是世界上最大的河流。"
    quotes = choose("世界上最大的河流，按流量", [Passage(text, "a.md")], SentenceVectors(encoder))
    assert quotes[0].text == "世界上最大的河流是亚马孙河。"
    assert len(quotes) == len({quote.text for quote in quotes}) == 2


def test_no_quote_ends_as_if_cut(vectors):
    text = "这条河的流量很大；流域面积约七百万平方公里；支流的数量也很多。这片大陆叫作南美洲。"
    [quote] = choose("流域面积是多少平方公里？", [Passage(text, "a.md")], vectors)
    assert quote.text == "这条河的流量很大；流域面积约七百万平方公里；支流的数量也很多。"
    items = Passage("- 第一项是面包和牛奶；\n- 第二项是苹果和香蕉。", "b.md")
    reply = ExtractiveModel(vectors).reply([Message("user", "第一项是面包吗？", (items,))])
    assert reply.text.splitlines()[0] == "- 第一项是面包和牛奶 [1]"


def test_at_most_three_and_no_sentence_twice(vectors):
    passage = Passage("Rivers flow down. " * 6 + "Rivers do flow. So rivers flow on.", "a.md")
    texts = [quote.text for quote in choose("rivers flow", [passage, passage], vectors)]
    assert len(texts) == len(set(texts)) <= 3


@given(
    st.lists(st.text(alphabet="abc 。.\n12长河", min_size=1, max_size=40), min_size=1, max_size=4)
)
def test_quotes_are_verbatim(texts):
    passages = [Passage(text, "a.md") for text in texts]
    for quote in choose("abc 长河 12?", passages, SentenceVectors(HashEncoder())):
        assert quote.text in passages[quote.source].text


def test_stream_reply_and_batch_agree(vectors):
    model = ExtractiveModel(vectors)
    asked = [Message("user", "How long is the Nile in km?", (RIVERS, LAKES))]
    streamed = "".join(chunk.text for chunk in model.stream(asked))
    assert streamed == model.reply(asked).text == next(model.batch([asked])).text
    assert re.search(r"6,650 km long\. \[1\]", streamed)
