"""A worker with a real model's stand-in: what it asks, writes, drops, survives and gives back."""

from __future__ import annotations

import threading
import time
from contextlib import contextmanager

import pytest
from queue_parts import Queue, open_at

from glmkit import Chunk, GenerationOptions, GlmkitError, StreamedModel, Usage, UsageError
from glmkit.live import Live
from glmkit.testing import EchoModel
from glmkit_serve.api.served import Served
from glmkit_serve.queue.database import DatabaseError, RefusedError
from glmkit_serve.queue.leases import Leases
from glmkit_serve.queue.worker import Worker, options_of


class Slow(StreamedModel):
    """Says a word whenever it may, and notes what becomes of its streams."""

    name, languages = "slow", None

    def __init__(self) -> None:
        self.may, self.closed = threading.Semaphore(0), threading.Event()

    def stream(self, messages, options=None):
        try:
            for word in messages[-1].content.split():
                assert self.may.acquire(timeout=20)
                yield Chunk(word + " ")
            yield Chunk("", "stop", Usage(1, 1))
        finally:
            self.closed.set()


class Picky(StreamedModel):
    """Fails in the way that the question says."""

    name, languages = "picky", None
    errors = {"wrong": UsageError("too long"), "busy": GlmkitError("no memory"), "bug": KeyError(3)}

    def __init__(self) -> None:
        self.lengths: list[int] = []

    def stream(self, messages, options=None):
        self.lengths.append(len(messages))
        if len(messages) > 3:
            raise UsageError("the conversation does not fit")
        if messages[-1].content in self.errors:
            raise self.errors[messages[-1].content]
        yield Chunk("fine", "stop", Usage(1, 1))


@contextmanager
def working(queue: Queue, model, **given):
    """Have a worker without a thread of its own: the test makes its steps."""
    live = Live(model)
    worker = Worker(queue.database, queue.settings, {"m": Served("m", "chat", live)}, **given)
    try:
        yield worker
    finally:
        for _ in range(50):  # whoever waits for a word may leave
            getattr(model, "may", threading.Semaphore()).release()
        live.close()


def until(done, worker: Worker) -> None:
    """Make steps until something holds."""
    end = time.monotonic() + 20
    while not done():
        assert time.monotonic() < end
        worker.step()
        time.sleep(0.002)


@pytest.fixture
def queue(tmp_path):
    queue = open_at(tmp_path / "q.db", slots=3, max_attempts=2)
    yield queue
    queue.database.close()


def test_questions_are_answered_with_what_was_said_before(queue):
    model = EchoModel()
    for turn in range(3):
        queue.store.submit(f"turn {turn}", "anna")
    queue.store.submit("alone", options={"max_tokens": 1})
    with working(queue, model) as worker:
        until(lambda: queue.store.counts()["done"] == 4, worker)
    said = {seen[-1].content: [each.content for each in seen[:-1]] for seen in model.seen}
    assert said["turn 2"] == ["turn 0", "turn 0", "turn 1", "turn 1"] and said["alone"] == []
    found = queue.store.get(3)
    assert (found.answer, found.finish_reason, found.prompt_tokens) == ("turn 2", "stop", 10)


def test_the_system_message_and_options_are_as_configured(tmp_path):
    queue = open_at(tmp_path / "q.db", system="Be brief.")
    model = EchoModel()
    queue.store.submit("one two three four")
    queue.store.submit("one two three four", options={"max_tokens": 3})
    with working(queue, model, options=GenerationOptions(max_tokens=2)) as worker:
        until(lambda: queue.store.counts()["done"] == 2, worker)
    assert [queue.store.get(n).answer for n in (1, 2)] == ["one two ", "one two three "]
    assert {seen[0].content for seen in model.seen} == {"Be brief."}


def test_what_is_said_is_seen_before_it_is_whole(queue):
    number = queue.store.submit("a b c")
    model = Slow()
    with working(queue, model) as worker:
        model.may.release()
        until(lambda: queue.store.get(number).partial == "a ", worker)
        model.may.release(2)
        until(lambda: queue.state(number) == "done", worker)
    assert queue.store.get(number).answer == "a b c "


def test_cancelling_closes_the_stream(queue):
    number = queue.store.submit("a b c", "anna")
    after = queue.store.submit("d", "anna")
    model = Slow()
    with working(queue, model) as worker:
        model.may.release()
        until(lambda: queue.store.get(number).partial == "a ", worker)
        queue.store.cancel(number)
        until(lambda: queue.state(after) == "running", worker)
        model.may.release(9)
        until(lambda: queue.state(after) == "done", worker)
    assert model.closed.is_set()
    assert queue.store.get(number).partial == "a " and queue.store.get(number).answer is None


def test_a_worker_that_was_thought_dead_writes_nothing(queue):
    number = queue.store.submit("a b")
    model = Slow()
    with working(queue, model) as worker:
        model.may.release()
        until(lambda: queue.store.get(number).partial == "a ", worker)
        queue.expire(number)
        other = queue.take()
        model.may.release(9)
        until(lambda: worker.step(claim=False) == 0, worker)
        assert queue.state(number) == "running" and queue.store.get(number).partial is None
        assert queue.leases.held([other]) == {number}


@pytest.mark.parametrize(
    ("question", "error", "attempts"),
    [("wrong", "too long", 1), ("busy", "no memory", 2), ("bug", "KeyError", 2)],
)
def test_failures_are_tried_again_where_that_may_help(queue, caplog, question, error, attempts):
    number = queue.store.submit(question)
    beside = queue.store.submit("good")
    with working(queue, Picky()) as worker:
        until(lambda: queue.state(number) == "dead" and queue.state(beside) == "done", worker)
    found = queue.store.get(number)
    assert (found.error, found.attempts) == (error, attempts)
    assert question not in caplog.text.replace("questions", "")


def test_a_history_that_does_not_fit_is_shortened(queue):
    model = Picky()
    for turn in range(5):
        queue.store.submit(f"turn {turn}", "anna")
    with working(queue, model) as worker:
        until(lambda: queue.store.counts()["done"] == 5, worker)
    assert model.lengths[-3:] == [9, 5, 3] and queue.store.get(5).attempts == 1


def test_wrong_options_in_a_row_are_its_own_fault(queue):
    queue.sql("INSERT INTO {table} (question, options) VALUES ('q', '{\"temprature\": 1}')")
    with working(queue, EchoModel()) as worker:
        until(lambda: queue.state(1) == "dead", worker)
    assert "unknown option 'temprature'" in queue.store.get(1).error


@pytest.mark.parametrize(
    "values",
    [
        "(CAST(x'b0e4ba' AS TEXT), NULL)",  # by a client that writes GBK
        "('q', CAST(x'b0e4ba' AS TEXT))",
        "('q', x'5b5d')",
        "(x'b0e4', NULL)",
    ],
)
def test_a_row_that_cannot_be_read_fails_alone(queue, values, caplog):
    queue.sql("INSERT INTO {table} (question, options) VALUES " + values)
    after = queue.store.submit("good")
    with working(queue, EchoModel()) as worker:
        until(lambda: queue.store.counts()["done"] == 1, worker)
    assert queue.state(1) == "dead" and queue.store.get(after).answer == "good"
    assert queue.store.get(1).attempts == 1 and queue.store.listed("dead")[0].id == 1


def test_a_name_that_only_the_database_takes_for_a_model_fails_alone(queue, monkeypatch, caplog):
    claim = Leases.claim
    monkeypatch.setattr(Leases, "claim", lambda self, *given: claim(self, *given[:2], _Any()))
    for model in ("m ", "other", "m"):
        queue.store.submit("q", model=model)
    with working(queue, EchoModel()) as worker:
        until(lambda: queue.store.counts()["done"] == 2, worker)
    assert "no model answers to 'other'" in queue.store.get(2).error


class _Any(tuple):
    """Names that a database finds equal, as MariaDB does with blanks at their end."""

    def __new__(cls):
        return super().__new__(cls, ("m", "m ", "other"))


def test_an_answer_that_the_database_refuses_is_not_tried_for_ever(queue, monkeypatch, caplog):
    def refuse(self, lease, outcome):
        raise RefusedError("no such character")

    monkeypatch.setattr(Leases, "settle", refuse)
    number = queue.store.submit("q")
    with working(queue, EchoModel()) as worker:
        until(lambda: queue.state(number) == "dead", worker)
    assert "refused the answer" in queue.store.get(number).error


def test_what_a_database_refuses_is_told_from_one_that_is_away(tmp_path):
    queue = open_at(tmp_path / "q.db")
    with pytest.raises(RefusedError):
        queue.sql("INSERT INTO {table} (question) VALUES (:q)", q=object())
    with pytest.raises(DatabaseError) as away:
        queue.sql("SELECT 1 FROM nowhere")
    assert not isinstance(away.value, RefusedError)


def test_a_worker_outlives_what_nobody_foresaw(queue, monkeypatch, caplog):
    number, broken = queue.store.submit("q"), threading.Event()

    def break_once(self, *given):
        monkeypatch.undo()
        broken.set()
        raise TypeError("unforeseen")

    with working(queue, EchoModel()) as worker:
        monkeypatch.setattr(Leases, "claim", break_once)
        thread = threading.Thread(target=worker.run)
        thread.start()
        assert broken.wait(20)
        end = time.monotonic() + 20
        while queue.state(number) != "done" and time.monotonic() < end:
            time.sleep(0.01)
        worker.stop()
        thread.join()
    assert queue.state(number) == "done" and "unforeseen" in caplog.text


@pytest.mark.parametrize("text", ["{", "[1]", '{"max_tokens": "x"}', '{"stop": 3}'])
def test_options_that_are_none_are_refused(text):
    with pytest.raises(UsageError):
        options_of(text, GenerationOptions())


def test_a_database_that_is_away_costs_nothing(queue, monkeypatch):
    number = queue.store.submit("a b")
    with working(queue, EchoModel()) as worker:
        worker.step()
        write, away = queue.database.write, [2]

        def failing(*given, **more):
            if away[0]:
                away[0] -= 1
                raise DatabaseError("away")
            return write(*given, **more)

        monkeypatch.setattr(queue.database, "write", failing)
        thread = threading.Thread(target=worker.run)
        thread.start()
        end = time.monotonic() + 20
        while queue.state(number) != "done" and time.monotonic() < end:
            time.sleep(0.01)
        worker.stop()
        thread.join()
    assert queue.state(number) == "done" and away == [0]


def test_stopping_gives_back_what_takes_too_long(tmp_path):
    queue = open_at(tmp_path / "q.db", stop_s=0.05)
    number = queue.store.submit("a b c")
    model = Slow()
    with working(queue, model) as worker:
        thread = threading.Thread(target=worker.run)
        thread.start()
        model.may.release()
        while queue.store.get(number).partial is None:
            time.sleep(0.005)
        worker.stop()
        thread.join()
        assert (queue.state(number), queue.store.get(number).attempts) == ("waiting", 0)


def test_names_choose_who_answers(queue):
    asked = {"big": EchoModel("BIG"), "small": EchoModel("SMALL")}
    models = {name: Served(name, "chat", Live(each)) for name, each in asked.items()}
    for name in ("small", None, "tiny"):
        queue.store.submit("q", model=name)
    worker = Worker(queue.database, queue.settings, models)
    until(lambda: queue.store.counts()["done"] == 2, worker)
    assert [queue.store.get(n).answer for n in (1, 2, 3)] == ["SMALL", "BIG", None]
    for each in models.values():
        each.live.close()


def test_old_answers_are_removed_where_that_is_wanted(tmp_path):
    queue = open_at(tmp_path / "q.db", keep_days=1.0)
    queue.store.submit("q")
    queue.leases.fail(queue.take(), "x", final=True)
    queue.store.submit("q")
    queue.store.cancel(2)
    queue.set(1, finished=1.0), queue.set(2, finished=1.0)
    with working(queue, EchoModel()) as worker:
        worker.step()
    assert queue.store.counts() == dict.fromkeys(queue.store.counts(), 0) | {"dead": 1}


def test_a_model_that_others_keep_busy_is_left_in_peace_for_a_while(queue):
    number = queue.store.submit("a b")
    live = Live(EchoModel(), queue=0)
    live.drain(1.0)  # takes no more
    now = [100.0]
    served = {"m": Served("m", "chat", live)}
    worker = Worker(queue.database, queue.settings, served, clock=lambda: now[0])
    for _ in range(9):
        worker.step()
    assert queue.store.get(number).token == 1 and queue.store.get(number).attempts == 0
    now[0] += 2.0
    worker.step()
    assert queue.store.get(number).token == 2
    live.close()
