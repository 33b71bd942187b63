"""Names that questions ask for: who answers to them, and what becomes of those nobody does."""

from __future__ import annotations

import json
import time
from contextlib import contextmanager

import pytest
from click.testing import CliRunner
from queue_parts import Queue, open_at, opened, reply

import glmkit_serve
from glmkit import UnknownNameError, UsageError
from glmkit.live import Live
from glmkit.testing import EchoModel, make_app
from glmkit_serve.api.served import Served
from glmkit_serve.queue.commands import queue as queue_group
from glmkit_serve.queue.worker import Worker

HOUR_S = 3600.0
MISTYPED = "INSERT INTO {table} (session, question, model) VALUES ('anna', 'q', 'hanbdook')"


def past(queue: Queue, seconds: float) -> None:
    """Let time pass for who works and what waits."""
    queue.sql("UPDATE {table}_workers SET lease_until = lease_until - :s", s=seconds)
    queue.sql("UPDATE {table} SET created = created - :s, due = due - :s", s=seconds)


def test_a_name_is_known_while_somebody_has_it_and_for_a_while_after(queue):
    presence = queue.store.presence
    presence.check("anything")  # nobody works: who comes may have it
    presence.announce("w1", ["default", "handbook"])
    presence.announce("w2", ["default"])
    assert presence.working() == {"default": 2, "handbook": 1}
    presence.announce("w1", ["default", "handbook"])
    with pytest.raises(UnknownNameError, match=r"'hanbdook'; did you mean 'handbook'\?"):
        queue.store.submit("q", model="hanbdook")
    presence.leave("w1")
    assert presence.working() == {"default": 1}
    past(queue, HOUR_S / 2)
    assert queue.store.submit("q", model="handbook ") == 1
    with pytest.raises(UsageError, match="190 printable characters, got ''"):
        queue.store.submit("q", model=" ")
    assert [each.model for each in queue.claim(9, models=("handbook",))] == ["handbook"]
    past(queue, HOUR_S)
    assert presence.known() == set()
    presence.announce("w2", ["default", "x" * 191, "\ud800"])
    assert presence.working() == {"default": 1}


def test_what_nobody_has_a_name_for_dies_and_says_why(queue):
    presence = queue.store.presence
    queue.sql(MISTYPED)
    after = queue.store.submit("next", "anna", model="handbook")
    presence.announce("w1", ["default", "handbook"])
    past(queue, HOUR_S / 2)
    assert presence.end_unserved() == 0 and queue.state(1) == "waiting"
    past(queue, HOUR_S)
    presence.announce("w1", ["default", "handbook"])
    assert presence.end_unserved() == 1
    dead = queue.store.get(1)
    assert dead.state == "dead" and dead.error.startswith("no worker has answered to the name")
    assert dead.error.endswith("for 3600 s; known: default, handbook")
    assert [each.id for each in queue.claim(9, models=("handbook",))] == [after]
    assert queue.store.retry([1]) == 1 and presence.end_unserved() == 0  # has an hour again
    assert queue.claim(9, models=("hanbdook",)) == []  # its session is busy
    past(queue, 2 * HOUR_S)
    presence.announce("w1", ["hanbdook"])
    assert presence.end_unserved() == 0  # there is somebody now


def test_only_who_has_worked_as_long_ends_what_nobody_serves(tmp_path):
    """Others may begin together with it, and load for longer."""
    queue = open_at(tmp_path / "q.db", lease_s=30.0)
    queue.sql(MISTYPED)
    past(queue, 9 * HOUR_S)
    now, live = [50.0], Live(EchoModel())
    served = {"echo": Served("echo", "chat", live)}
    worker = Worker(queue.database, queue.settings, served, clock=lambda: now[0])
    for passed in (0.0, HOUR_S - 1):
        now[0] += passed
        worker.step()
        assert queue.state(1) == "waiting"
    now[0] += 1.0
    worker.step()
    assert queue.state(1) == "dead"
    live.close()


@contextmanager
def workers_of(queue, *names, clock):
    """Return workers that have one model each."""
    models = [{name: Served(name, "chat", Live(EchoModel()))} for name in names]
    yield [Worker(queue.database, queue.settings, each, clock=clock) for each in models]
    for each in models:
        each.popitem()[1].live.close()


@pytest.mark.parametrize("asleep", [False, True], ids=["outage", "sleep"])
def test_after_an_outage_the_others_have_time_to_come_back(new_queue, asleep):
    """Nor does a machine that slept know how long: its clock stood still."""
    queue, now = new_queue(lease_s=30.0), [50.0]
    with workers_of(queue, "a", "b", clock=lambda: now[0]) as (first, second):
        for passed in (0.0, HOUR_S - 5, 5.0 - asleep):
            now[0] += passed
            first.step(), second.step()
        number = queue.store.submit("q", model="b")
        past(queue, 2 * HOUR_S)
        now[0] += 1.0 if asleep else 2 * HOUR_S
        first.step()
        assert queue.state(number) == "waiting"
        second.announce()
        now[0] += HOUR_S
        first.step()
        assert queue.state(number) == "waiting"  # there is somebody
        past(queue, 2 * HOUR_S)
        for _ in range(2):
            first.announce()
            now[0] += HOUR_S
        first.step()
        assert queue.state(number) == "dead"


def test_spaces_at_the_end_of_a_name_do_not_count(new_queue):
    """Neither where other programs ask, nor in what a worker has been told to answer to."""
    queue = new_queue()
    queue.sql("INSERT INTO {table} (question, model) VALUES ('q', 'handbook  ')")
    queue.store.submit("q", model="handbook ")
    assert queue.store.waiting_for() == {"handbook": 2}
    with workers_of(queue, "handbook ", clock=time.monotonic) as (worker,):
        worker.announce()
        past(queue, 2 * HOUR_S)
        worker.announce()
        assert queue.store.presence.end_unserved() == 0
        while worker.step():
            time.sleep(0.001)
    assert queue.store.counts()["done"] == 2


def test_a_worker_shows_that_it_lives_and_says_when_it_ends(tmp_path):
    queue = open_at(tmp_path / "q.db", lease_s=30.0)
    now, live = [50.0], Live(EchoModel())
    served = {"echo": Served("echo", "chat", live)}
    worker = Worker(queue.database, queue.settings, served, clock=lambda: now[0])
    worker.step()
    past(queue, 25.0)
    now[0] += 9.9
    worker.step()
    past(queue, 25.0)
    assert queue.store.presence.working() == {}  # nothing was said for too long
    now[0] += 0.2
    worker.step()
    assert queue.store.presence.working() == {"echo": 1}
    worker.stop()
    worker.run()
    assert queue.store.presence.working() == {} and queue.store.presence.known() == {"echo"}
    live.close()


def test_commands_say_what_no_worker_has(tmp_path):
    queue = open_at(tmp_path / "q.db")
    queue.store.presence.announce("w", ["handbook"])
    app = make_app(
        tmp_path / "home",
        {"plugins": {"serve": {"queue": {"db": f"sqlite:///{tmp_path}/q.db"}}}},
        serve=glmkit_serve,
    )

    def say(*arguments: str) -> str:
        done = CliRunner().invoke(queue_group, arguments, obj=app, catch_exceptions=False)
        return done.output

    with pytest.raises(UnknownNameError, match="handbook"):
        say("submit", "q", "--model", "hanbdook")
    queue.sql(MISTYPED)
    say("submit", "q", "--model", "handbook")
    told = say("status").splitlines()
    assert "1 of them wait for the model hanbdook, which no worker has" in told
    assert "1 of them wait for the model handbook" in told
    assert json.loads(say("status", "--json"))["waiting"] == 2


def test_tables_of_the_first_version_are_brought_up_to_date(queue):
    """What was asked and answered stays, and workers that still run are not disturbed."""
    first, second = queue.store.submit("q", "anna"), queue.store.submit("next", "anna", model="big")
    lease = queue.take()
    queue.sql("DROP TABLE {table}_workers")
    queue.sql("UPDATE {table}_version SET version = 1")
    for _ in range(2):
        opened(queue.settings.db, table=queue.settings.table).database.close()
    assert queue.sql("SELECT version FROM {table}_version") == [(2,)]
    assert queue.store.presence.known() == set()
    assert queue.leases.settle(lease, reply("a"))
    assert (queue.store.get(first).answer, queue.state(second)) == ("a", "waiting")
    assert [each.id for each in queue.claim(9, models=("big",))] == [second]
