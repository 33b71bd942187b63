"""Scores of answers: equal to the well-known scripts, and sane at the edges."""

import json

import pytest
from hypothesis import given, settings, strategies as st

from glmkit.errors import UnknownNameError
from glmkit.evaluation.scores import METRICS, Scorer, chosen, normalised, spaced


@pytest.fixture(scope="module")
def scorer(tmp_path_factory) -> Scorer:
    return Scorer(cache=tmp_path_factory.mktemp("jieba"))


def as_the_scripts_do(predict: str, label: str) -> dict[str, float]:
    """Compute what ChatGLM's P-Tuning script and LLaMA-Factory compute of one row."""
    import jieba
    from nltk.translate.bleu_score import SmoothingFunction, sentence_bleu
    from rouge_chinese import Rouge

    hypothesis, reference = list(jieba.cut(predict)), list(jieba.cut(label))
    found = Rouge().get_scores(" ".join(hypothesis), " ".join(reference))[0]
    bleu = sentence_bleu(
        [list(label)], list(predict), smoothing_function=SmoothingFunction().method3
    )
    rouge = {name: round(each["f"] * 100, 4) for name, each in found.items()}
    return {**rouge, "bleu-4": round(bleu * 100, 4)}


def test_scores_are_those_of_the_scripts_on_real_rows(scorer, shared_data):
    """Advertisements of one product against those of another one, and against a part of it."""
    lines = (shared_data / "adgen" / "dev.json").read_text(encoding="utf-8").splitlines()
    texts = [json.loads(line)["summary"] for line in lines[:16]]
    for predict, label in zip(texts, texts[1:], strict=False):
        for said in (predict, label[: len(label) // 2] + predict):
            found = scorer.score(said, label)
            for name, value in as_the_scripts_do(said, label).items():
                assert found[name] == value, (name, said, label)


def test_english_is_compared_by_words_too(scorer):
    label = "The cat sat quietly on the old mat by the door."
    same = scorer.score(label, label)
    other = scorer.score("A dog ran loudly to a new car in my yard.", label)
    assert same["bleu-4"] == same["bleu-4-words"] == same["exact"] == 100
    assert other["rouge-1"] < 20 and other["bleu-4-words"] < other["bleu-4"]
    assert (
        as_the_scripts_do("The cat sat.", label)["rouge-l"]
        == (scorer.score("The cat sat.", label)["rouge-l"])
    )


def test_chinese_has_no_score_over_blanks(scorer):
    assert "bleu-4-words" not in scorer.score("今天 天气", "今天天气很好")


@pytest.mark.parametrize("predict", ["", " ", "\n\n", "。", "？", "！\n", "\u3000"])
def test_next_to_nothing_scores_next_to_nothing(scorer, predict):
    found = scorer.score(predict, "今天天气很好，我们去公园吧。")
    assert all(0 <= each < 25 for each in found.values())
    assert found["exact"] == 0


def test_an_empty_answer_is_right_where_it_was_wanted(scorer):
    assert set(scorer.score("", "").values()) == {100.0}


@settings(max_examples=40, deadline=None)
@given(st.text(max_size=40), st.text(max_size=40))
def test_any_text_has_scores_in_their_range(scorer, predict, label):
    found = scorer.score(predict, label)
    assert all(0 <= each <= 100.0001 for each in found.values())
    assert scorer.score(label, label)["exact"] == 100


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("Paris", " “paris”. "),
        ("北 京", "北京。"),
        ("ＡＢＣ １２", "abc 12"),
        ("New  York\n", "new york"),
        ("在Paris吗？", "在 paris 吗"),
    ],
)
def test_what_tells_no_answers_apart(one, other):
    assert normalised(one) == normalised(other)


@pytest.mark.parametrize(("one", "other"), [("3.14", "314"), ("-5", "5"), ("newyork", "new york")])
def test_what_tells_answers_apart(one, other):
    assert normalised(one) != normalised(other)


@pytest.mark.parametrize(
    ("text", "so"), [("two words", True), ("one", False), ("两 个 词", False), ("", False)]
)
def test_languages_with_blanks(text, so):
    assert spaced(text) is so


def test_only_what_is_asked_for_is_computed(scorer):
    assert set(Scorer(["exact"]).score("a b", "a b")) == {"exact"}
    assert chosen(["rouge", "bleu"]) == METRICS["bleu"] + METRICS["rouge"]


def test_an_unknown_metric_is_named():
    with pytest.raises(UnknownNameError, match="unknown metric 'blue'.*'bleu'"):
        Scorer(["blue"])


def test_jieba_keeps_its_dictionary_where_it_is_told_to(scorer, tmp_path):
    from glmkit.evaluation import scores

    cache = tmp_path / "private"
    scores._jieba.cache_clear()
    Scorer(["rouge"], cache=cache).score("今天", "今天")
    assert [each.name for each in cache.iterdir()]
    scores._jieba.cache_clear()
