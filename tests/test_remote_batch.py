"""Batches through a server: side by side, and no row lost where it goes away."""

from __future__ import annotations

import threading
import time
from dataclasses import replace
from itertools import count

import pytest
from chat_server import (
    Act,
    ask,
    error,
    prompts,
    row_of,
    serve,
    written,
)

from glmkit import GenerationOptions, Message, Reply, Server
from glmkit.batch.job import Job, run_job
from glmkit.console import drain
from glmkit.errors import GlmkitError, ServerError
from glmkit.remote import patience
from glmkit.remote.faults import ShutError
from glmkit.remote.model import RemoteModel

pytestmark = [
    pytest.mark.network,
    pytest.mark.allow_hosts(["127.0.0.1"]),
    pytest.mark.usefixtures("hurry"),
]


@pytest.fixture
def model(server):
    return RemoteModel("tiny", Server(server.url))


def test_rows_run_side_by_side_and_are_drawn_as_room_comes_free(model, server):
    server.pause_s = 0.02
    drawn = []
    ahead = []

    def asked():
        for key in range(60):
            drawn.append(key)
            yield ask(key)

    for done, (key, reply) in enumerate(model.answers(asked(), concurrency=8)):
        assert isinstance(reply, Reply) and reply.text == f"echo row {key}"
        ahead.append(len(drawn) - done)
    assert len(ahead) == 60
    assert 4 <= server.peak
    assert max(ahead) <= 8 + 1
    assert server.connections <= 8


def test_a_slow_source_holds_nothing_back(model):
    def asked():
        yield ask(0)
        time.sleep(0.15)
        yield ask(1)
        yield from iter(lambda: finished.wait(5) and None, None)

    finished = threading.Event()
    answers = model.answers(asked(), concurrency=4)
    assert next(answers)[0] == 0
    finished.set()
    assert next(answers)[0] == 1
    answers.close()


def test_a_row_that_is_refused_is_that_row_s_error(model, server):
    server.always = lambda body: error(400, "bad words") if row_of(body) % 3 == 0 else None
    found = dict(model.answers(map(ask, range(9)), concurrency=3))
    assert [isinstance(found[key], Reply) for key in range(9)] == [key % 3 > 0 for key in range(9)]
    assert "400: bad words" in str(found[3])


def test_a_question_that_a_server_forbids_is_that_row_s_error(model, server):
    server.always = lambda body: error(403, "flagged") if row_of(body) == 4 else None
    found = dict(model.answers(map(ask, range(9)), concurrency=1))
    assert "403: flagged" in str(found[4]) and isinstance(found[8], Reply)


def test_a_row_that_always_breaks_the_server_is_told_from_a_broken_server(
    model, server, monkeypatch
):
    monkeypatch.setattr(patience, "TRIES", 4)
    server.always = lambda body: Act(500) if row_of(body) == 4 else None
    found = dict(model.answers(map(ask, range(12)), concurrency=3))
    assert [key for key, reply in found.items() if not isinstance(reply, Reply)] == [4]
    assert "asked 4 times" in str(found[4])


def test_a_server_that_fails_all_rows_ends_the_job(model, server, tmp_path, monkeypatch):
    monkeypatch.setattr(patience, "TRIES", 2)
    server.always = lambda body: Act(502) if row_of(body) >= 20 else None
    job = Job(prompts(tmp_path, 200), tmp_path / "out.jsonl", "tiny", concurrency=4)
    with pytest.raises(ServerError, match="5 requests failed one after the other.*502"):
        drain(run_job(model, job))
    before = written(job.output)
    assert 15 <= len(before) and set(before) <= set(range(20))
    assert not any(each["error"] for each in before.values())
    server.always = lambda body: None
    summary = drain(run_job(model, job))
    assert (summary.answered, summary.failed) == (200 - len(before), 0)
    assert sorted(written(job.output)) == list(range(200))


@pytest.mark.parametrize("act", [error(401, "no"), error(404, "model `tiny` not found")])
def test_what_no_row_can_change_ends_the_job_with_its_first_row(model, server, tmp_path, act):
    server.always = lambda body: act
    job = Job(prompts(tmp_path, 100), tmp_path / "out.jsonl", "tiny", concurrency=4)
    with pytest.raises(ShutError):
        drain(run_job(model, job))
    assert job.output.read_text() == ""
    assert len(server.asked) <= 4


def test_what_all_rows_are_refused_for_ends_the_job(model, server, tmp_path):
    server.always = lambda body: error(422, "Unexpected fields in the request: {'top_k'}")
    source = prompts(tmp_path, 300)
    job = Job(source, tmp_path / "out.jsonl", "tiny", options=GenerationOptions(top_k=3))
    with pytest.raises(GlmkitError, match="the first 20 rows were all refused.*leave out top_k"):
        drain(run_job(model, job))
    assert len(written(job.output)) == 20
    server.always = lambda body: None
    summary = drain(run_job(model, replace(job, retry_errors=True)))
    assert (summary.before, summary.answered) == (0, 300)


def test_an_adapter_that_the_server_lacks_is_a_row_s_error(model, server):
    missing = error(404, "The model `law` does not exist.")
    server.always = lambda body: missing if body["model"] == "law" else None
    found = dict(model.answers([ask(0, adapter="law"), ask(1), ask(2, adapter={})]))
    assert "it serves tiny" in str(found[0])
    assert isinstance(found[1], Reply) and isinstance(found[2], Reply)


def test_answers_that_came_before_the_job_ends_are_kept(model, server):
    refuse, answer = threading.Event(), threading.Event()

    def always(body):
        if row_of(body) == 0:
            while len(server.asked) < 8:
                time.sleep(0.01)
            return None
        (refuse if row_of(body) == 3 else answer).wait(5)
        return error(401, "no more") if row_of(body) == 3 else None

    def wait_for(event: threading.Event, running: int) -> None:
        event.set()
        while server.running > running:
            time.sleep(0.01)
        time.sleep(0.1)

    server.always = always
    answers = model.answers(map(ask, range(8)), concurrency=8)
    found = [next(answers)[0]]
    wait_for(refuse, 6)
    wait_for(answer, 0)
    with pytest.raises(ShutError):
        found += (key for key, _ in answers)
    assert sorted(found) == [0, 1, 2, 4, 5, 6, 7]


def test_a_server_that_dies_loses_no_row(tmp_path, monkeypatch):
    monkeypatch.setattr(patience, "TRIES", 3)
    job = Job(prompts(tmp_path, 200), tmp_path / "out.jsonl", "tiny", concurrency=8)
    with serve() as server:
        model = RemoteModel("tiny", Server(server.url))
        served = count()
        server.always = lambda body: Act(hang_up=True) if next(served) >= 50 else None
        with pytest.raises(ServerError, match="connection to .* broke|cannot reach"):
            drain(run_job(model, job))
    before = written(job.output)
    assert len(before) == 50 and not any(each["error"] for each in before.values())
    with pytest.raises(ShutError, match="is the server running"):
        drain(run_job(model, job))
    with serve() as server:
        summary = drain(run_job(RemoteModel("tiny", Server(server.url)), job))
    assert (summary.before, summary.answered) == (50, 150)
    assert not any(each["error"] for each in written(job.output).values())


def test_leaving_ends_what_still_runs_and_the_server_sees_it(model, server):
    server.always = lambda body: Act(kind="text/event-stream", wait_for_leave=True)
    server.acts.append(Act(400))
    server.pause_s = 0.1  # the others are on their way before the first is refused
    answers = model.answers(map(ask, range(100)), concurrency=6)
    next(answers)
    started = time.monotonic()
    answers.close()
    assert time.monotonic() - started < 3
    assert server.left.wait(5)
    assert not [each for each in threading.enumerate() if each.name.startswith("glmkit-remote")]


def test_leaving_ends_waits_for_another_try(server):
    model = RemoteModel("tiny", Server(server.url))
    server.always = lambda body: error(429, "later", headers={"Retry-After": "60"})
    server.acts.append(Act(400))
    answers = model.answers(map(ask, range(100)), concurrency=6)
    next(answers)
    started = time.monotonic()
    answers.close()
    assert time.monotonic() - started < 3


def test_a_batch_in_python_keeps_its_order_and_raises(model, server):
    server.always = lambda body: Act(400) if row_of(body) == 5 else None
    conversations = ([Message("user", f"row {at}")] for at in range(9))
    replies = model.batch(conversations)
    assert [next(replies).text for _ in range(5)] == [f"echo row {at}" for at in range(5)]
    with pytest.raises(ServerError, match="400"):
        next(replies)
