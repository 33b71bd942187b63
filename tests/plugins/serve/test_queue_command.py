"""``glmkit queue`` and ``glmkit run queue``: flags, settings, processes that are replaced."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time

import pytest
import short_lives
from click.testing import CliRunner
from queue_parts import open_at, reply

import glmkit_serve
from glmkit import ConfigError, Spec, UsageError, hookimpl
from glmkit.testing import EchoModel, make_app
from glmkit_serve.api.served import Wanted
from glmkit_serve.queue import fleet as fleets
from glmkit_serve.queue.command import queue as run_queue
from glmkit_serve.queue.commands import queue as queue_group
from glmkit_serve.queue.fleet import Fleet, hired
from glmkit_serve.queue.post import Post
from glmkit_serve.queue.settings import QueueSettings


def load_echo(name: str, app: object) -> EchoModel:
    return EchoModel()


class Parts:
    """A model that needs no file."""

    @hookimpl
    def register_models(self, register) -> None:
        register(Spec("echo", "", "test_queue_command:load_echo"))


@pytest.fixture
def app(tmp_path):
    queue = {"db": f"sqlite:///{tmp_path}/q.db", "poll_s": 0.01}
    config = {"model": "echo", "plugins": {"serve": {"queue": queue}}}
    return make_app(tmp_path / "home", config, serve=glmkit_serve, parts=Parts())


@pytest.fixture
def say(app):
    """Run a command of ``glmkit queue``, and return what it printed."""

    def run(*arguments: object) -> str:
        done = CliRunner().invoke(
            queue_group, [str(each) for each in arguments], obj=app, catch_exceptions=False
        )
        assert done.exit_code == 0, done.output
        return done.output

    return run


def test_commands_go_through_a_questions_life(app, say, tmp_path):
    queue = open_at(tmp_path / "q.db")
    assert say("submit", "What is\na glacier?", "--session", "anna", "--max-tokens", 5) == "1\n"
    say("submit", "next", "--session", "anna", "--model", "big")
    lease = queue.take()
    assert json.loads(lease.options) == {"max_tokens": 5}
    queue.leases.fail(lease, "bad", final=True)
    assert "What is a glacier?" in say("dead") and "bad (1 attempts)" in say("dead")
    assert json.loads(say("dead", "--json"))["error"] == "bad"
    assert say("retry", 1) == "1 to be tried again\n"
    assert "wait for the model big" in say("status")
    assert json.loads(say("status", "--json"))["waiting"] == 2
    assert json.loads(say("status", 2, "--json"))["ahead"] == 1
    assert say("cancel", 1) == "cancelled\n"
    with pytest.raises(UsageError, match="cancelled already"):
        say("cancel", 1)
    assert say("purge", "--days", 0) == "1 removed\n"
    with pytest.raises(UsageError, match="--all"):
        say("retry")


def test_waiting_prints_the_answer(app, say, tmp_path):
    queue = open_at(tmp_path / "q.db")

    def answer():
        while not (taken := queue.claim()):
            time.sleep(0.01)
        queue.leases.settle(taken[0], reply("Ice."))

    thread = threading.Thread(target=answer)
    thread.start()
    assert say("submit", "q", "--wait") == "Ice.\n"
    thread.join()


def test_what_serves_by_names_answers_by_names(app, tmp_path):
    settings = QueueSettings(db=f"sqlite:///{tmp_path}/q.db", poll_s=0.01)
    queue = open_at(tmp_path / "q.db")
    for model in (None, "default", "echo"):
        queue.store.submit("q", model=model)
    with hired(app, queue.database, Post(app.config, settings, Wanted())) as worker:
        end = time.monotonic() + 20
        while queue.store.counts()["done"] < 3 and time.monotonic() < end:
            worker.step()
            time.sleep(0.002)
    assert queue.store.counts()["done"] == 3


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (["--no-http", "--workers", "0"], "nothing to do"),
        (["--host", "0.0.0.0"], "needs a key"),
        (["--slots", "0"], "slots must be"),
        (["--db", "nonsense"], "no address of a database"),
        (["--adapter", "x"], "no such folder"),
    ],
)
def test_flags_that_cannot_be_are_refused(app, flags, said):
    with pytest.raises(UsageError, match=said):
        CliRunner().invoke(run_queue, flags, obj=app, catch_exceptions=False)


def test_a_queue_may_be_called_by_other_names(app, monkeypatch):
    doors = []
    monkeypatch.setattr(
        "glmkit_serve.queue.command._run", lambda *given: doors.append(given[-1].door)
    )
    flags = ["--allow-host", "Box.lan", "--host", "127.0.0.2"]
    done = CliRunner().invoke(run_queue, flags, obj=app, catch_exceptions=False)
    assert done.exit_code == 0 and {"box.lan", "127.0.0.2"} <= set(doors[0].hosts)


def test_a_queue_needs_a_database(tmp_path):
    app = make_app(tmp_path / "home", serve=glmkit_serve)
    with pytest.raises(UsageError, match="GLMKIT_QUEUE_DB"):
        CliRunner().invoke(queue_group, ["status"], obj=app, catch_exceptions=False)


def test_only_a_question_makes_a_database(tmp_path):
    app = make_app(tmp_path / "home", serve=glmkit_serve)
    for command in ("status", "dead", "retry --all", "cancel 1", "purge --days 0"):
        told = [*command.split(), "--db", f"sqlite:///{tmp_path}/typo.db"]
        with pytest.raises(UsageError, match="there is no database '.*typo.db'"):
            CliRunner().invoke(queue_group, told, obj=app, catch_exceptions=False)
    assert not (tmp_path / "typo.db").exists()


def test_the_table_of_settings_is_checked_at_the_start(tmp_path):
    with pytest.raises(ConfigError, match="did you mean 'slots'"):
        make_app(tmp_path, {"plugins": {"serve": {"queue": {"slot": 1}}}}, serve=glmkit_serve)


def awaited(done) -> None:
    end = time.monotonic() + 30
    while not done():
        assert time.monotonic() < end
        time.sleep(0.01)


def test_a_process_that_ends_is_replaced(app, tmp_path, monkeypatch):
    monkeypatch.setattr(fleets, "work", short_lives.lasting)
    monkeypatch.setattr(fleets, "_SHORT_LIFE_S", 0.0)
    notes = tmp_path / "pids"
    notes.touch()
    post = Post(app.config, QueueSettings(db=str(notes)), Wanted())
    fleet = Fleet(post, 2, threading.Event())
    fleet.start()
    try:
        awaited(lambda: len(notes.read_text().split()) == 2)
        first, other = map(int, notes.read_text().split())
        os.kill(first, signal.SIGKILL)
        awaited(lambda: len(notes.read_text().split()) == 3)
        assert other in fleet.pids and first not in fleet.pids
    finally:
        fleet.stop()
    assert fleet.pids == []


def test_a_worker_that_cannot_begin_is_not_replaced(app, monkeypatch):
    monkeypatch.setattr(fleets, "work", short_lives.hopeless)
    over = threading.Event()
    fleet = Fleet(Post(app.config, QueueSettings(), Wanted()), 1, over)
    fleet.start()
    assert over.wait(30)
    fleet.stop()


@pytest.mark.parallel
@pytest.mark.timeout(400)
@pytest.mark.parametrize("flags", [["--port", "0"], ["--no-http", "--workers", "2"]])
def test_the_whole_command_answers_and_stops_when_told(tmp_path, flags):
    from glmkit.models.tiny import tiny_checkpoint

    url = f"sqlite:///{tmp_path}/q.db"
    model = tiny_checkpoint(tmp_path / "tiny")
    queue = open_at(tmp_path / "q.db")
    for turn in range(6):
        queue.store.submit(f"question {turn}", f"s{turn % 2}")
    command = [sys.executable, "-m", "glmkit", "run", "queue", "--model", str(model)]
    environment = {**os.environ, "GLMKIT_QUEUE_DB": url, "OMP_NUM_THREADS": "1"}
    process = subprocess.Popen(
        [*command, "--max-tokens", "8", *flags], env=environment, cwd=tmp_path
    )
    try:
        end = time.monotonic() + 300
        while queue.store.counts()["done"] < 6:
            assert process.poll() is None and time.monotonic() < end
            time.sleep(0.1)
    finally:
        process.send_signal(signal.SIGTERM)
        assert process.wait(60) == 0
    assert queue.store.counts()["running"] == 0
