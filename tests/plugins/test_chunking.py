"""Chunking: where sentences end, what a piece holds, and that nothing is lost."""

from __future__ import annotations

import re
import time

import pytest
from hypothesis import given, settings, strategies as st

from glmkit_knowledge.chunking import BUDGET, chunk, sentences
from glmkit_knowledge.readers import READERS, Section, read

ENGLISH = "The Nile is the longest river of Africa. It flows north into the sea. "
CHINESE = "长江是亚洲最长的河流。它发源于青藏高原，流经十一个省级行政区！最后注入东海。"


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("长江很长。黄河呢？也很长！", ["长江很长。", "黄河呢？", "也很长！"]),
        ("他说：“河很长。”然后走了。", ["他说：“河很长。”", "然后走了。"]),
        ("一；二；三……完了。", ["一；", "二；", "三……", "完了。"]),
        ('He said "No." Then he left.', ['He said "No."', "Then he left."]),
        ("Rivers, e.g. the Nile, i.e. long ones.", ["Rivers, e.g. the Nile, i.e. long ones."]),
        ("Pi is 3.14 or so. Dr. Smith knows.", ["Pi is 3.14 or so.", "Dr. Smith knows."]),
        ("The U.S. Army came. It left.", ["The U.S. Army came.", "It left."]),
        ("See example.com/a?b=c! Now.", ["See example.com/a?b=c!", "Now."]),
        ("See No. 5 and p. 3 of it.", ["See No. 5 and p. 3 of it."]),
        ("J. R. Smith wrote it.", ["J. R. Smith wrote it."]),
        ("圆周率是3.14。对吗?对.", ["圆周率是3.14。", "对吗?", "对."]),
        ("- one\n- two\n1. three\n2. four", ["- one", "- two", "1. three", "2. four"]),
        ("| a | b |\n|---|---|\n| 1 | 2 |", ["| a | b |", "|---|---|", "| 1 | 2 |"]),
        ("标题\n正文第一行\n正文第二行", ["标题", "正文第一行", "正文第二行"]),
        ("", []),
        (" \n ", []),
    ],
)
def test_sentences(text, expected):
    assert sentences(text) == expected


def test_a_wrapped_english_sentence_is_one():
    text = "This sentence goes on for so long that the editor broke\nit into two lines. Next."
    assert len(sentences(text)) == 2


fragments = st.sampled_from(
    [ENGLISH, CHINESE, "- item\n", "3.14 ", "e.g. ", "\n\n", "\n", "x" * 300, "。", "! ", "，", "|"]
)
characters = st.sampled_from("aB c1.!?,\n\n。！？；…，、”\"')长江河流 \t-|#é😀")
texts = st.text(alphabet=characters, max_size=400) | st.lists(fragments, max_size=40).map("".join)


def squeezed(text: str) -> str:
    return re.sub(r"\s", "", text)


@given(texts)
@settings(deadline=None)
def test_sentences_lose_nothing(text):
    found = sentences(text)
    assert squeezed("".join(found)) == squeezed(text)
    assert all(found)


@given(st.lists(st.lists(fragments, max_size=30), max_size=4), st.integers(100, 400))
@settings(deadline=None)
def test_pieces_fit_and_lose_nothing(parts, budget):
    # A character that occurs once before every fragment shows what arrived, and in which order.
    marks = iter(map(chr, range(0x5000, 0x9000)))
    marked = ["".join(next(marks) + fragment for fragment in part) for part in parts]
    pieces = list(chunk([Section(text, ("Top",), line=1) for text in marked], budget=budget))
    assert all(len(piece.text.encode()) <= budget for piece in pieces)
    arrived = re.findall("[\u5000-\u8fff]", "".join(piece.text for piece in pieces))
    sent = re.findall("[\u5000-\u8fff]", "".join(marked))
    assert [mark for mark in dict.fromkeys(arrived) if mark in set(sent)] == list(
        dict.fromkeys(sent)
    )


@given(texts)
@settings(deadline=None)
def test_lines_are_right(text):
    lines = text.split("\n")
    for piece in chunk([Section(text, line=1)], budget=150):
        first = piece.text.split("\n")[0].strip()
        assert first in lines[piece.line - 1]


def test_pieces_end_with_sentences():
    pieces = list(chunk([Section(ENGLISH * 40), Section(CHINESE * 40, ("长江",))]))
    assert all(piece.text.endswith((".", "。", "！")) for piece in pieces)
    english = [len(piece.text) for piece in pieces if piece.text.isascii()]
    chinese = [len(piece.text) for piece in pieces if not piece.text.isascii()]
    assert 700 <= sum(english) / len(english) <= 900
    assert 240 <= sum(chinese) / len(chinese) <= 400


def test_one_sentence_overlaps():
    text = "".join(f"Sentence number {n} of this text says little. " for n in range(60))
    pieces = list(chunk([Section(text)]))
    for before, after in zip(pieces, pieces[1:-1], strict=False):
        assert before.text.endswith(sentences(after.text)[0])


def test_an_overlong_sentence_is_cut_at_commas():
    text = "一，二十个字的分句在这里重复很多很多次" * 60
    pieces = list(chunk([Section(text)]))
    assert len(pieces) > 1
    assert "".join(piece.text for piece in pieces) == text
    assert all(piece.text.endswith("，") for piece in pieces[:-1])


def test_text_without_any_break_is_cut_to_the_budget():
    pieces = list(chunk([Section("河" * 5000)]))
    assert "".join(piece.text for piece in pieces) == "河" * 5000
    assert max(len(piece.text.encode()) for piece in pieces) <= BUDGET


def test_short_neighbours_under_one_heading_are_merged():
    sections = [Section(f"Fact {n}.", ("A",), line=n) for n in range(1, 6)]
    (only,) = chunk([*sections])
    assert only.text == "Fact 1.\nFact 2.\nFact 3.\nFact 4.\nFact 5."
    headed = [Section("One.", ("A",)), Section("Two.", ("A", "B")), Section("Three.", ("A",))]
    assert [piece.headings for piece in chunk(headed)] == [("A",), ("A", "B"), ("A",)]


def test_no_crumb_at_the_end():
    pieces = list(chunk([Section(ENGLISH * 13 + "Short end.")]))
    assert len(pieces) == 2
    assert all(len(piece.text) > BUDGET // 3 for piece in pieces)


def test_records_stay_whole_and_apart():
    rows = [
        Section(f"问题: {n}？\n答案: {'很长。' * 60}", place=f"row {n}", whole=True) for n in (2, 3)
    ]
    assert [piece.location for piece in chunk(rows)] == ["row 2", "row 3"]
    long = Section("答案: " + "很长。" * 1000, ("为什么？",), place="row 9", whole=True)
    pieces = list(chunk([long]))
    assert len(pieces) > 5
    assert {piece.location for piece in pieces} == {"为什么？, row 9"}


def test_pages_meet_in_a_piece_only_where_little_is_on_them():
    assert [
        piece.location for piece in chunk([Section("One.", page=1), Section("Two.", page=2)])
    ] == ["pages 1-2"]
    pages = [Section(ENGLISH * 10, page=1), Section(ENGLISH * 10, page=2)]
    assert [piece.location for piece in chunk(pages)] == ["page 1", "page 2"]


@pytest.mark.parametrize(
    ("section", "location", "embedded"),
    [
        (Section("x", ("Rivers", "Nile"), line=12), "Rivers > Nile, line 12", "Rivers > Nile\nx"),
        (Section("x", page=3), "page 3", "x"),
        (Section("x", place="row 7"), "row 7", "x"),
        (Section("x", ("Rivers",)), "Rivers", "Rivers\nx"),
        (Section("x"), "", "x"),
    ],
)
def test_locations(section, location, embedded):
    (piece,) = chunk([section])
    assert (piece.location, piece.embedded) == (location, embedded)


def test_rules_and_borders_are_no_pieces():
    assert list(chunk([Section("---\n\n***\n|---|---|")])) == []


def test_lines_of_a_real_file(shared_data):
    for path in sorted((shared_data / "chatchat-kb").glob("*.md")):
        lines = path.read_text(encoding="utf-8").split("\n")
        for piece in chunk(read(path, READERS)):
            assert piece.text.split("\n")[0].strip() in lines[piece.line - 1]


@pytest.mark.parametrize("text", [ENGLISH, CHINESE + "\n", "x", "a b", "a.", "。", "a,"])
def test_chunking_is_linear(text):
    def seconds(size: int) -> float:
        sections = [Section((text * (size // len(text) + 1))[:size])]
        started = time.process_time()
        for _ in chunk(sections):
            pass
        return time.process_time() - started

    seconds(10_000)
    # Eight times the text; a quadratic step would take sixty-four times as long.
    assert seconds(800_000) < 24 * max(seconds(100_000), 0.01)
