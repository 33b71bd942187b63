"""What a check finds, and what statistics say."""

import pytest

from glmkit.console import drain
from glmkit.dataset import open_data
from glmkit.dataset.checks import Longest, check
from glmkit.dataset.statistics import script_of, statistics
from glmkit.errors import DataError

from .rows import ALPACA, MESSAGES, SHAREGPT, jsonl


def long(text):
    return ALPACA | {"output": text}


def measure(sample):
    if "unreadable" in sample.messages[-1].content:
        raise DataError("cannot be read")
    return len(sample.messages[-1].content)


def test_findings_are_listed_by_file_and_line(tmp_path):
    good = jsonl(tmp_path / "a.jsonl", ALPACA, {"instruction": "x"}, ALPACA, long("y" * 50))
    odd = jsonl(tmp_path / "b.jsonl", MESSAGES, long("x"), SHAREGPT)
    more = jsonl(
        tmp_path / "c.jsonl", ALPACA, long("<|user|> hi"), long("\ufffd"), long("unreadable")
    )
    empty = jsonl(tmp_path / "d.jsonl")
    specs = [str(each) for each in (good, odd, more, empty)]
    report = drain(check(specs, longest=Longest(measure, 20)))
    found = [
        (each.fault, each.file[-7:], each.place and each.place.line) for each in report.findings
    ]
    assert found == [
        ("row", "a.jsonl", 2),
        ("duplicate", "a.jsonl", 3),
        ("overlong", "a.jsonl", 4),
        ("row", "b.jsonl", 2),
        ("row", "b.jsonl", 3),
        ("duplicate", "c.jsonl", 1),
        ("markup", "c.jsonl", 2),
        ("damaged text", "c.jsonl", 3),
        ("row", "c.jsonl", 4),
        ("file", "d.jsonl", None),
    ]
    said = [str(each) for each in report.findings]
    assert said[1] == "a.jsonl, line 3: the same conversation as line 1"
    assert said[5] == "c.jsonl, line 1: the same conversation as a.jsonl, line 1"
    assert said[2] == "a.jsonl, line 4: 50 tokens, of 20 at most"
    assert said[-1].endswith("d.jsonl is empty") and said[-1].count("d.jsonl") == 1
    assert (report.rows, report.samples, report.good) == (11, 8, False)
    assert report.counts["row"] == 4


def test_data_with_warnings_alone_is_good(tmp_path):
    report = drain(check([str(jsonl(tmp_path / "a.jsonl", ALPACA, ALPACA))]))
    assert report.good and report.counts == {"duplicate": 1}
    assert report.files == ["a.jsonl: alpaca, 2 rows"]


def test_statistics_count_what_is_there(tmp_path):
    rows = [
        ALPACA | {"output": "一" * 10},
        ALPACA | {"output": "x" * 30, "history": [["q", "a"]], "system": "s"},
        {"instruction": "x", "output": "y" * 20},
    ]
    data = open_data([str(jsonl(tmp_path / "a.jsonl", *rows))], train_on="last")
    found = drain(statistics(data, Longest(measure, 20)))
    told = found.as_dict()
    assert (found.samples, found.messages, found.answers, found.learnt) == (3, 9, 4, 3)
    assert told["with_system"] == 1 and told["turns"] == {"1": 2, "2": 1}
    assert told["scripts"] == {"Latin": 2, "Chinese": 1}
    lengths = told["answer_characters"]
    assert (lengths["mean"], lengths["p50"], lengths["max"]) == (20, 20, 30)
    assert told["tokens"]["max"] == 30 and told["overlong"] == 1


@pytest.mark.parametrize(
    ("text", "script"),
    [
        ("The word 世界 means world", "Latin"),
        ("你好，我用 Python 写程序", "Chinese"),
        ("これは日本語の文章です", "Japanese"),
        ("안녕하세요", "Korean"),
        ("Привет", "Cyrillic"),
        ("12 + 30 = 42", "other"),
        ("", "other"),
    ],
)
def test_scripts(text, script):
    assert script_of([text]) == script
