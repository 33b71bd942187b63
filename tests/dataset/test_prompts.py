"""Data to be answered: any format, with or without answers, and all columns beside."""

import json

import pytest

from glmkit.console import drain
from glmkit.dataset.columns import ColumnNames
from glmkit.dataset.prompts import prompt_of, reading_prompts
from glmkit.errors import DataError, UsageError

SYSTEM, USER = {"role": "system", "content": "s"}, {"role": "user", "content": "a"}
ANSWER, WORSE = ({"role": "assistant", "content": each} for each in "bc")
SAID = {"from": "human", "value": "a"}


def read(*specs, **given):
    return drain(reading_prompts([str(each) for each in specs], **given))


@pytest.mark.parametrize(
    ("row", "asked", "reference"),
    [
        ({"prompt": "a"}, ["a"], ""),
        ({"prompt": "a", "solution": "4"}, ["a"], ""),
        ({"prompt": [SYSTEM, USER]}, ["s", "a"], ""),
        ({"question": "a", "answer": "#### 4"}, ["a"], "#### 4"),
        ({"instruction": "a", "input": "b", "output": "c"}, ["a\nb"], "c"),
        ({"instruction": "a", "output": ["best", "worse"]}, ["a"], ""),
        ({"messages": [USER]}, ["a"], ""),
        ({"messages": [USER, ANSWER]}, ["a"], "b"),
        ({"conversations": [SAID], "chosen": ANSWER, "rejected": WORSE}, ["a"], ""),
        ({"prompt": "a", "chosen": "b", "rejected": "c"}, ["a"], ""),
        ({"prompt": "c", "response": "d", "history": [["a", "b"]]}, ["a", "b", "c"], "d"),
        ({"problem": "a", "level": 5}, ["a"], ""),
    ],
)
def test_what_a_row_asks(row, asked, reference):
    found = prompt_of(row)
    assert [each.content for each in found.messages] == asked
    assert (found.reference, found.row) == (reference, row)


def test_columns_that_somebody_names():
    row = {"frage": "a", "antwort": "b", "prompt": "c"}
    found = prompt_of(row, ColumnNames(prompt="frage", response="antwort"))
    assert (found.question, found.reference) == ("a", "b")
    assert prompt_of(row, ColumnNames(prompt="frage")).question == "a"


@pytest.mark.parametrize(
    ("row", "says"),
    [
        ({"x": 1}, "no column of questions that is known, but 'x'; name it: --prompt-column"),
        ({"prompt": ""}, "the question is empty"),
        ({"messages": [{"role": "assistant", "content": "b"}]}, "it asks nothing"),
        ({"messages": [{"role": "system", "content": "b"}]}, "it asks nothing"),
    ],
)
def test_rows_that_ask_nothing(row, says):
    with pytest.raises(DataError, match=says):
        prompt_of(row)


def test_files(tmp_path):
    file = tmp_path / "a.jsonl"
    file.write_text("".join(json.dumps({"prompt": str(at)}) + "\n" for at in range(10)))
    found = read(file)
    assert len(found) == 10 and found.prompts[2].where == "a.jsonl, line 3"
    some = read(f"{file}#3")
    assert len(some) == 3 and some.prompts == read(f"{file}#3").prompts
    assert some.fingerprint == read(f"{file}#3").fingerprint != found.fingerprint
    learnt, held = found.split(0.2)
    assert (len(learnt), len(held)) == (8, 2)
    assert {each.question for each in (*learnt.prompts, *held.prompts)} == set("0123456789")
    with pytest.raises(UsageError, match="keeps 10 of 10 prompts"):
        found.split(10)
    with pytest.raises(UsageError, match="prompts are not mixed by weights"):
        read(f"{file}@0.5")
    with pytest.raises(UsageError, match="it has 10 prompts; take that many at most"):
        read(f"{file}#11")
    bad = tmp_path / "b.jsonl"
    bad.write_text('{"prompt": "a"}\n{"x": 1}\nnonsense\n')
    with pytest.raises(DataError, match=r"2 of 3 rows ask nothing .*\n  b.jsonl, line 2: .*\n"):
        read(bad)
    assert len(read(bad, skip_bad=True)) == 1


def test_public_data(shared_data):
    for name, count in {"gsm8k/test.jsonl": 1319, "llama-factory/dpo_zh_demo.json": 300}.items():
        assert len(read(shared_data / name)) == count
