"""The unigram tokenizer, against the tokenizers library and by its properties."""

from __future__ import annotations

import pytest
from hypothesis import given, settings, strategies as st
from tiny_e5 import MAP, PIECES
from tokenizers import Tokenizer, models, pre_tokenizers

from glmkit import CheckpointError
from glmkit.models.unigram import Unigram

SCORES = [-1 - index / 3 for index in range(len(PIECES))]
OURS = Unigram(PIECES, SCORES, MAP, unknown=3)
LETTERS = st.text(st.sampled_from("ab:rive河流A "), max_size=60)


def theirs() -> Tokenizer:
    vocabulary = [*zip(PIECES, SCORES, strict=True)]
    vocabulary[3] = (" <unk>", SCORES[3])  # never matched: spaces are marks by then
    tokenizer = Tokenizer(models.Unigram(vocabulary, unk_id=3))
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="always")
    return tokenizer


THEIRS = theirs()


def score(ids: list[int]) -> float:
    lowest = min(SCORES) - 10
    return sum(lowest if each == 3 else SCORES[each] for each in ids)


@settings(max_examples=300, deadline=None)
@given(text=LETTERS)
def test_splits_are_as_likely_as_those_of_the_library(text: str):
    # It takes a run of unknown characters as one, and breaks ties in its own way.
    text = " ".join(text.split()) or "a"
    ours, expected = OURS.encode(text), THEIRS.encode(text).ids
    if 3 not in ours:
        assert score(ours) == pytest.approx(score(expected))


@settings(max_examples=300, deadline=None)
@given(text=LETTERS.filter(lambda text: "i" not in text.replace("river", "")))
def test_pieces_join_to_the_normalised_text(text: str):
    ids = OURS.encode(text)
    if 3 not in ids:
        assert "".join(PIECES[each] for each in ids) == OURS.normalize(text)


@given(text=st.text(st.characters()))
def test_any_string_has_ids(text: str):
    assert all(0 <= each < len(PIECES) for each in OURS.encode(text + "\ud800\0"))


@pytest.mark.parametrize(
    ("text", "normalized"),
    [
        ("a", "▁a"),
        ("", "▁"),
        (" a", "▁a"),
        ("a   b ", "▁a▁b▁"),
        ("Ａ　b", "▁A▁b"),
        ("a\x01\0b", "▁ab"),
        ("a\ud800b", "▁a▁b"),
    ],
)
def test_normalisation(text: str, normalized: str):
    assert OURS.normalize(text) == normalized


def test_each_unknown_character_counts_and_its_own_text_is_not_matched():
    assert OURS.encode("ab 😀😀") == [4, 8, 4, 3, 3]
    assert OURS.encode("<unk>").count(3) == 5


def test_a_long_word_is_split_as_its_parts():
    assert OURS.encode("river" * 40)[1:] == [PIECES.index("river")] * 40


@pytest.mark.parametrize(
    ("pieces", "scores", "unknown"),
    [(["a", "a"], [0.0, 0.0], 0), (["a", "b"], [0.0], 0), (["a", "b"], [0.0, 0.0], 2)],
)
def test_a_vocabulary_that_does_not_fit_is_refused(pieces, scores, unknown):
    with pytest.raises(CheckpointError, match="vocabulary"):
        Unigram(pieces, scores, {}, unknown=unknown)
