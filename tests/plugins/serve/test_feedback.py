"""The table of what people thought of answers, and the preferences in it."""

import json
import sqlite3
import sys
import threading

import pytest
from hypothesis import given, settings, strategies as st

import glmkit_finetune
from glmkit import DataError, Message, Passage, UsageError
from glmkit.dataset import open_data
from glmkit.feedback import (
    DISPUTED,
    NO_OPINION,
    NO_RIVAL,
    SAME_TEXT,
    Feedback,
    FeedbackStore,
    default_path,
    pairs_of,
)
from glmkit.testing import make_app
from glmkit.thumbs import NO_ANSWER, judgements_of
from glmkit_finetune.data import data

ASKED = (Message("system", "Be short."), Message("user", "What is the capital of Kenya?"))


def said(answer, rating=0, better="", asked=ASKED, **more):
    return Feedback(asked, answer, rating, better, **more)


def texts(found):
    return {(pair.chosen, pair.rejected) for pair in found.pairs}


@pytest.fixture
def store(tmp_path):
    return FeedbackStore(tmp_path / "deep" / "feedback.db")


def test_what_goes_in_comes_out(store):
    passage = Passage("Nairobi lies …", "kenya.md", "line 3", 0.9, "knowledge")
    whole = said("Mombasa", -1, "内罗毕", model="m", adapter="a", knowledge="k", sources=(passage,))
    assert store.add(whole) == 1 and store.add(said("Nairobi", 1)) == 2
    again = FeedbackStore(store.path)
    assert next(iter(again)) == whole and len(again) == 2


def test_an_opinion_can_change(store):
    number = store.add(said("Mombasa"))
    store.revise(number, rating=-1)
    store.revise(number, better="Nairobi")
    (row,) = store
    assert (row.rating, row.better) == (-1, "Nairobi")
    store.revise(number, rating=0, better="")
    assert next(iter(store)).rating == 0
    with pytest.raises(UsageError, match="no feedback number 7"):
        store.revise(7, rating=1)
    with pytest.raises(UsageError, match="-1, 0 or 1, got 2"):
        store.revise(number, rating=2)


def test_what_is_no_feedback_is_refused(store):
    with pytest.raises(UsageError, match="-1, 0 or 1, got 5"):
        said("x", 5)
    with pytest.raises(UsageError, match="needs the messages"):
        Feedback((), "x")


def test_a_file_of_somebody_else_is_left_alone(tmp_path):
    other = tmp_path / "other.db"
    with sqlite3.connect(other) as connection:
        connection.execute("CREATE TABLE accounts (name TEXT)")
    connection.close()
    before = other.read_bytes()
    with pytest.raises(DataError, match="a database of something else"):
        FeedbackStore(other)
    text = tmp_path / "text.db"
    text.write_text("no database at all, but long enough to be looked at" * 10)
    with pytest.raises(DataError, match="not a database"):
        FeedbackStore(text)
    with pytest.raises(DataError, match="cannot use the feedback table"):
        FeedbackStore(text / "deeper" / "table.db")
    assert other.read_bytes() == before


def test_a_later_version_is_not_guessed_at(store):
    connection = sqlite3.connect(store.path)
    connection.execute("PRAGMA user_version = 9")
    connection.close()
    with pytest.raises(DataError, match=r"version 9 .* knows 1; install a later glmkit"):
        FeedbackStore(store.path)


@pytest.mark.parametrize("place", range(6))
def test_another_may_make_the_table_between_two_statements(tmp_path, monkeypatch, place):
    path, connect, left = tmp_path / "feedback.db", sqlite3.connect, [place]

    class Overtaken(sqlite3.Connection):
        def execute(self, *command):
            if not self.in_transaction:
                left[0] -= 1
                if left[0] == -1:
                    FeedbackStore(path).add(said("the other's"))
            return super().execute(*command)

    with monkeypatch.context() as patch:
        patch.setattr(
            sqlite3, "connect", lambda *given, **more: connect(*given, **more, factory=Overtaken)
        )
        FeedbackStore(path).add(said("mine"))
    assert "mine" in {row.answer for row in FeedbackStore(path)}


@pytest.fixture
def hasty_threads():
    """Let threads interrupt each other after each few instructions."""
    usual = sys.getswitchinterval()
    sys.setswitchinterval(1e-5)
    yield
    sys.setswitchinterval(usual)


def test_threads_write_side_by_side(tmp_path, hasty_threads):
    """Each makes the table for itself, as processes do."""
    failed = []

    def write(path, name):
        try:
            for number in range(2):
                FeedbackStore(path).add(said(f"{name} {number}"))
        except DataError as error:
            failed.append(error)

    for attempt in range(5):
        path = tmp_path / f"{attempt}.db"
        threads = [threading.Thread(target=write, args=(path, name)) for name in "abcdefgh"]
        for each in threads:
            each.start()
        for each in threads:
            each.join()
        assert not failed
        assert len({row.answer for row in FeedbackStore(path)}) == 16


def test_a_row_that_breaks_off_is_not_there(store):
    store.add(said("Nairobi", 1))
    with pytest.raises(DataError, match="CHECK constraint"):
        broken = said("x")
        object.__setattr__(broken, "rating", 3)
        store.add(broken)
    assert len(store) == 1


def test_a_better_answer_is_preferred_to_the_one_shown():
    found = pairs_of([said("Mombasa", -1, "Nairobi"), said("Cairo", 0, "Nairobi")])
    assert texts(found) == {("Nairobi", "Mombasa"), ("Nairobi", "Cairo")} and not found.skipped


def test_thumbs_up_are_preferred_to_thumbs_down_of_the_same_conversation():
    other = (Message("user", "What is the capital of Kenya?"),)
    rows = [
        said("Nairobi", 1),
        said("Mombasa", -1),
        said("Kisumu", -1),
        said("Cairo", -1, "", other),
    ]
    found = pairs_of(rows)
    assert texts(found) == {("Nairobi", "Mombasa"), ("Nairobi", "Kisumu")}
    assert found.skipped == {NO_RIVAL: 1}


def test_what_makes_no_pair_is_counted():
    rows = [said("a"), said("b", 0, " b "), said("c", 1), said("d", 1), said("d", -1)]
    found = pairs_of(rows)
    assert not found.pairs
    assert found.skipped == {NO_OPINION: 1, SAME_TEXT: 1, NO_RIVAL: 1, DISPUTED: 2}


def test_thumbs_for_the_same_words_are_summed():
    rows = [said("a", 1), said("a", 1), said("a", -1), said("b", -1)]
    assert texts(pairs_of(rows)) == {("a", "b")}


def test_an_answer_from_documents_is_asked_with_them():
    passage = Passage("The capital is Nairobi.", "kenya.md")
    (pair,) = pairs_of([said("Mombasa", 0, "Nairobi", sources=(passage,))]).pairs
    asked = pair.as_trl()["prompt"][-1]["content"]
    assert "<passage 1>\nThe capital is Nairobi." in asked and asked.endswith("capital of Kenya?")


@settings(max_examples=60, deadline=None)
@given(
    st.lists(
        st.tuples(
            st.sampled_from("abc"), st.sampled_from((-1, 0, 1)), st.sampled_from(("", "a", "d"))
        ),
        max_size=8,
    )
)
def test_pairs_never_contradict_each_other_by_thumbs(rows):
    found = pairs_of([said(*each) for each in rows])
    assert all(pair.chosen != pair.rejected for pair in found.pairs)
    by_thumbs = texts(pairs_of([said(answer, rating) for answer, rating, _ in rows]))
    assert not {(b, a) for a, b in by_thumbs} & by_thumbs
    assert sum(found.skipped.values()) <= len(rows)
    assert len(texts(found)) == len(found.pairs)


def verdicts(*rows):
    return {each.answer: each.good for each in judgements_of(rows).found}


def test_thumbs_and_better_answers_are_verdicts():
    assert verdicts(said("Nairobi", 1), said("Mombasa", -1)) == {"Nairobi": True, "Mombasa": False}
    assert verdicts(said("Cairo", 0, "Nairobi")) == {"Cairo": False, "Nairobi": True}
    assert verdicts(said("Nairobi", 1, "Nairobi it is")) == {"Nairobi": True, "Nairobi it is": True}
    assert verdicts(said("a", 1), said("a ", 1), said("a", -1)) == {"a": True}  # once
    other = (Message("user", "What is the capital of Mali?"),)
    found = judgements_of([said("Nairobi", 1), said("Nairobi", -1, asked=other)])
    assert [each.good for each in found.found] == [True, False]


def test_what_makes_no_verdict_is_counted():
    rows = [said("a"), said("b", 0, " b "), said("d", 1), said("d", -1), said(" ", 1)]
    found = judgements_of(rows)
    assert not found.found
    assert found.skipped == {NO_OPINION: 1, SAME_TEXT: 1, DISPUTED: 2, NO_ANSWER: 1}


def test_verdicts_are_asked_with_documents():
    passage = Passage("The capital is Nairobi.", "kenya.md")
    (found,) = judgements_of([said("Nairobi", 1, sources=(passage,))]).found
    assert "<passage 1>\nThe capital is Nairobi." in found.as_row()["prompt"][-1]["content"]


@pytest.fixture
def app(tmp_path):
    return make_app(tmp_path / "home", finetune=glmkit_finetune)


def run(app, capsys, *args):
    data.main([str(each) for each in args], obj=app, standalone_mode=False)
    return capsys.readouterr()


def test_pairs_are_written_as_trl_and_llama_factory_read_them(app, capsys, tmp_path):
    store = FeedbackStore(default_path(app.config.home))
    earlier = (Message("user", "Hi"), Message("assistant", "Hello"))
    store.add(said("Mombasa", -1, "Nairobi", (ASKED[0], *earlier, ASKED[1])))
    store.add(said("whatever"))
    out, err = run(app, capsys, "from-feedback", "-o", tmp_path / "pairs.jsonl")
    assert out.endswith("1 preference pairs, trl\n") and "left out 1: neither a thumb" in err
    row = json.loads((tmp_path / "pairs.jsonl").read_text())
    assert [each["role"] for each in row["prompt"]] == ["system", "user", "assistant", "user"]
    assert row["chosen"] == [{"role": "assistant", "content": "Nairobi"}]
    assert row["rejected"] == [{"role": "assistant", "content": "Mombasa"}]
    wanted = ("--to", "llama-factory", "-o", tmp_path / "pairs.json")
    run(app, capsys, "from-feedback", store.path, *wanted)
    (row,) = json.loads((tmp_path / "pairs.json").read_text())
    assert row["system"] == "Be short."
    assert [each["from"] for each in row["conversations"]] == ["human", "gpt", "human"]
    assert row["chosen"] == {"from": "gpt", "value": "Nairobi"}
    for name in ("pairs.jsonl", "pairs.json"):
        checked = json.loads(run(app, capsys, "check", tmp_path / name, "--json").out)
        assert checked["good"] and checked["pairs"] == 1, name


def test_lone_thumbs_are_written_as_kto_reads_them(app, capsys, tmp_path):
    store = FeedbackStore(default_path(app.config.home))
    store.add(said("Mombasa", -1))
    store.add(said("Nairobi", 1, asked=ASKED[1:]))
    store.add(said("whatever"))
    thumbs = tmp_path / "thumbs.jsonl"
    out, err = run(app, capsys, "from-feedback", "--to", "kto", "-o", thumbs)
    assert out.endswith("2 answers, 1 of them good, kto\n") and "left out 1: neither" in err
    found = list(open_data([str(thumbs)], kind="verdicts").verdicts())
    assert [(each.prompt, each.answer.content, each.good) for each in found] == [
        (ASKED, "Mombasa", False),
        (ASKED[1:], "Nairobi", True),
    ]
    store = FeedbackStore(tmp_path / "none.db")
    store.add(said("whatever"))
    with pytest.raises(UsageError, match="holds no opinion"):
        run(app, capsys, "from-feedback", store.path, "--to", "kto", "-o", tmp_path / "n.jsonl")


def test_nothing_to_write_is_said_and_writes_nothing(app, capsys, tmp_path):
    output = tmp_path / "pairs.jsonl"
    with pytest.raises(UsageError, match=r"no feedback table .*glmkit run web"):
        run(app, capsys, "from-feedback", "-o", output)
    FeedbackStore(default_path(app.config.home)).add(said("c", 1))
    with pytest.raises(UsageError, match="holds no preference"):
        run(app, capsys, "from-feedback", "-o", output)
    assert not output.exists()
