"""What is asked afterwards is not what was learnt."""

from pathlib import Path

import pytest

from glmkit.evaluation.forgetting import questions
from glmkit.evaluation.scores import normalised
from glmkit_finetune.identity import Identity, identity_rows

GUIDE = Path(__file__).parents[3] / "docs" / "guides" / "rename.md"


@pytest.fixture(scope="module")
def learnt() -> set[str]:
    whole = {each: Identity("Aria", "the Glass Lake team") for each in ("en", "zh")}
    return {normalised(row["instruction"]) for row in identity_rows(whole, ["en", "zh"])}


def test_general_questions_are_not_in_the_set_that_renames(learnt):
    assert not learnt & {normalised(each.question) for each in questions()}


def test_the_wordings_of_the_guide_are_not_in_the_set(learnt):
    text = GUIDE.read_text("utf-8").partition("## The wordings")[2]
    asked = [line.removeprefix("- ") for line in text.splitlines() if line.startswith("- ")]
    assert len(asked) >= 20
    assert not learnt & set(map(normalised, asked))
