"""The questions that show what a model has forgotten."""

import pytest

from glmkit.evaluation.comparing import Measure
from glmkit.evaluation.forgetting import Forgetting, Outcome, Question, questions, texts


def test_there_are_questions_and_texts_in_both_languages():
    for language in ("en", "zh"):
        asked = questions({language})
        assert len(asked) >= 20 and {each.language for each in asked} == {language}
        assert len({each.question for each in asked}) == len(asked)
        assert len(texts({language})) >= 4
    assert len(questions()) == len(questions({"en"})) + len(questions({"zh"}))
    assert questions({"fr"}) == ()


def test_no_question_gives_its_answer_away():
    """Else a model that repeats the question would be right; wishes for a text are apart."""
    allowed = {"sleep", "sleeping", "sea", "海", "睡"}
    for each in questions():
        given = {word for word in each.answers if Question("", "", (word,)).right(each.question)}
        assert given <= allowed, each


@pytest.mark.parametrize(
    ("answers", "said", "so"),
    [
        (["Paris"], "It is PARIS, of course.", True),
        (["Paris"], "Parisian", False),
        (["7", "seven"], "There are seven days.", True),
        (["7"], "17", False),
        (["7"], "7.5", False),
        (["7"], "7.", True),
        (["7"], "70", False),
        (["5"], "2.5", False),
        (["100"], "100°C", True),
        (["100"], "1,100", False),
        (["100"], "１００度", True),
        (["7"], "一星期有7天", True),
        (["巴黎"], "首都是巴黎。", True),
        (["def"], "```python\ndef add(a, b):", True),
        (["carbon dioxide"], "Carbon Dioxide (CO2)", True),
        (["Paris"], "", False),
    ],
)
def test_what_is_right(answers, said, so):
    assert Question("?", "en", tuple(answers)).right(said) is so


def _outcomes() -> tuple[Outcome, ...]:
    one, two, three = (Question(str(at), "en", ("yes",)) for at in range(3))
    return (
        Outcome(one, "yes", "I am Aria."),
        Outcome(two, "no", "yes"),
        Outcome(three, "Yes!", "yes"),
    )


def test_a_report_counts_what_broke_and_what_changed():
    found = Forgetting(_outcomes(), (Measure(20.0, 10.0),), (Measure(30.0, 10.0),))
    assert found.base_right == found.tuned_right == pytest.approx(2 / 3)
    assert [each.question.question for each in found.broken] == ["0"]
    assert found.changed == pytest.approx(2 / 3)
    assert found.perplexity_ratio == pytest.approx(2.718, abs=1e-3)
    said = found.as_dict()
    assert said["mended"][0]["question"] == "1" and said["questions"] == 3
    assert said["right_difference"][0] == pytest.approx(0)


def test_an_empty_report_has_no_ratio():
    found = Forgetting(())
    assert found.perplexity_ratio is None and found.right is None and found.base_right == 0
