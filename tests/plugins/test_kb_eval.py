"""``glmkit kb eval``: the metrics by hand, bad question files, and the command."""

import json
from pathlib import Path

import pytest
from memory_base import MemoryBase
from test_knowledge_app import app, folder, run  # noqa: F401 -- fixtures

from glmkit import DataError
from glmkit.console import drain
from glmkit.testing import HashEncoder
from glmkit_knowledge.commands import kb as kb_group
from glmkit_knowledge.evaluate import Figures, Outcome, Question, evaluate, read_questions
from glmkit_knowledge.retrieve import Retriever

ROOT = Path(__file__).parent.parent.parent


def outcome(answer=None, source="a.md", paths=("a.md",), refused=False, said=None, ms=1.0):
    question = Question("?", "en", answer, source if answer else None)
    return Outcome(question, paths, 0.5, refused, ms, said)


def test_the_metrics_by_hand():
    figures = Figures.of(
        [
            outcome("x", said="It is X indeed."),
            outcome("x", paths=("b.md", "a.md"), said="no", ms=3.0),
            outcome("x y", paths=("b.md",), refused=True, said="refused", ms=2.0),
            outcome("x y", said="so x\n  Y!", ms=2.0),
            outcome(refused=True),
            outcome(refused=True),
            outcome(refused=False),
        ]
    )
    assert figures == Figures(
        hit_at_1=0.5,
        hit_at_5=0.75,
        mrr=0.625,
        answer_contains=0.5,
        refusal_precision=0.6667,
        refusal_recall=0.6667,
        questions=7,
        query_ms_p50=1.0,
    )


def test_nothing_to_count_is_null():
    only = Figures.of([outcome("x")])
    assert (only.refusal_precision, only.refusal_recall, only.answer_contains) == (None,) * 3
    assert Figures.of([outcome()]).hit_at_1 is None
    assert Figures.of([]).query_ms_p50 is None


GOOD = {"question": "?", "language": "en", "answer": None, "source": None}


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("{", "not JSON"),
        ("[]", "expected an object"),
        (json.dumps(GOOD | {"languge": "en"}), "did you mean 'language'"),
        (json.dumps({"question": "?", "language": "en"}), "'answer', 'source' missing"),
        (json.dumps(GOOD | {"question": " "}), "'question' must be"),
        (json.dumps(GOOD | {"answer": 3}), "'answer' must be"),
        (json.dumps(GOOD | {"source": "a.md"}), "both be null"),
    ],
)
def test_a_bad_line_is_named_by_its_number(tmp_path, line, said):
    path = tmp_path / "q.jsonl"
    path.write_text(f"{json.dumps(GOOD)}\n\n{line}\n")
    with pytest.raises(DataError, match="line 3") as caught:
        read_questions(path)
    assert said in str(caught.value)


def test_unreadable_question_files(tmp_path):
    path = tmp_path / "q.jsonl"
    with pytest.raises(DataError, match="cannot read"):
        read_questions(path)
    path.write_bytes("问".encode("gbk"))
    with pytest.raises(DataError, match="UTF-8"):
        read_questions(path)
    path.write_text("\n")
    with pytest.raises(DataError, match="no questions"):
        read_questions(path)


def test_evaluation_asks_every_question():
    encoder = HashEncoder()
    base = MemoryBase.of({"a.md": "The Nile is 6,650 km long.", "b.md": "长江很长。"}, encoder)
    asked = [
        Question("How long is the Nile in km?", "en", "6,650", "a.md"),
        Question("谁写了《卡门》?", "zh", None, None),
    ]
    work = evaluate(Retriever(base, encoder), asked, threshold=0.5, answer=lambda q: "6,650 km")
    report = drain(work)
    overall = report.as_dict()["overall"]
    assert overall["hit_at_1"] == overall["refusal_recall"] == overall["answer_contains"] == 1.0
    assert report.languages == ["en", "zh"]
    assert report.as_dict()["languages"]["zh"]["hit_at_1"] is None


def test_the_command(run, folder, tmp_path):  # noqa: F811
    path = tmp_path / "q.jsonl"
    lines = [
        GOOD | {"question": "How long is the Nile in kilometres?"},
        GOOD | {"question": "Who composed Carmen?"},
        GOOD | {"question": "贝加尔湖最深处有多少米?", "language": "zh"},
    ]
    lines[0] |= {"answer": "6,650", "source": "rivers.md"}
    lines[2] |= {"answer": "1642", "source": "lakes.md"}
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    args = ["eval", "--kb", str(folder), "--questions", str(path)]
    found = json.loads(run(*args, "--json", command=kb_group)[0])
    assert found["overall"]["questions"] == 3
    assert found["overall"]["hit_at_5"] == found["overall"]["answer_contains"] == 1.0
    assert found["languages"]["en"]["refusal_recall"] == 1.0
    bare = json.loads(run(*args, "--json", "--no-answer", command=kb_group)[0])
    assert bare["overall"]["answer_contains"] is None
    table, err = run(*args, "--details", "--threshold", "1", command=kb_group)
    assert "refusal_precision" in table
    assert "refused " in err


@pytest.mark.defaults
def test_the_sample_base_is_answered_as_promised(default_encoder_path, tmp_path):
    from glmkit.runtime.encoding import load_encoder
    from glmkit_knowledge.base import KnowledgeBase
    from glmkit_knowledge.calibrate import THRESHOLD

    encoder = load_encoder(default_encoder_path)
    with KnowledgeBase.open(ROOT / "knowledge", home=tmp_path, encoder=encoder) as base:
        drain(base.update())
        retriever = Retriever(base, encoder, home=tmp_path)
        questions = read_questions(ROOT / "knowledge" / "questions.jsonl")
        report = drain(evaluate(retriever, questions, threshold=THRESHOLD))
    for language in ("zh", "en"):
        figures = report.figures(language)
        assert figures.hit_at_5 >= 0.95, language
        # Measured: recall 0.93 in both, precision 0.78 in English and 0.82 in Chinese, where the
        # aim is 0.9: what is refused wrongly is nearly all answered only in the other language.
        assert figures.refusal_recall >= 0.9, language
        assert figures.refusal_precision >= 0.75, language
