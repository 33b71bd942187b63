"""Workers that are killed at random: each question is answered exactly once, and in order."""

from __future__ import annotations

import os
import random
import signal
import sys
import time
from collections import Counter, defaultdict
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from forks import Fork, Forks
from queue_parts import Queue

WORKERS = 3
LEASE_S = 0.6

IMPORTS = """
import os, random, time
from sqlalchemy.dialects import sqlite
import glmkit.chat, glmkit.live, glmkit.testing
import glmkit_serve.api.served, glmkit_serve.queue.worker
try:
    import psycopg, pymysql
    from sqlalchemy.dialects import mysql, postgresql
except ImportError:
    pass
"""

WORKER = """
import os, random, sys, time
from glmkit import Chunk, StreamedModel, Usage
from glmkit.live import Live
from glmkit_serve.api.served import Served
from glmkit_serve.queue.database import Database
from glmkit_serve.queue.settings import QueueSettings
from glmkit_serve.queue.worker import Worker

url, table, journal, seed, lease_s = sys.argv[1:]
journal = os.open(journal, os.O_WRONLY | os.O_APPEND | os.O_CREAT)
dice = random.Random(int(seed))

class Echo(StreamedModel):
    '''Repeats the question and the one before it; writes down when it begins.'''

    name, languages = "echo", None

    def stream(self, messages, options=None):
        question = messages[-1].content
        os.write(journal, f"{question}\\n".encode())
        before = messages[-3].content if len(messages) > 2 else "nothing"
        for word in f"{question} after {before}".split():
            time.sleep(dice.random() * 0.002)
            yield Chunk(word + " ")
        yield Chunk("", "stop", Usage(1, 1))

settings = QueueSettings(
    db=url, table=table, lease_s=float(lease_s), slots=4, history=1, poll_s=0.05, stream_s=0.05,
    max_attempts=100, backoff_s=0.0,
)
database = Database.open(url, table, durable=False)
Worker(database, settings, {"echo": Served("echo", "chat", Live(Echo()))}).run()
"""

# Whatever writes an answer is written down by the database itself.
AUDITS = {
    "sqlite": (
        "CREATE TABLE {table}_audit (n INTEGER PRIMARY KEY AUTOINCREMENT, id INT, answer TEXT)",
        "CREATE TRIGGER {table}_seen AFTER UPDATE OF answer ON {table} BEGIN "
        "INSERT INTO {table}_audit (id, answer) VALUES (new.id, new.answer); END",
    ),
    "postgresql": (
        "CREATE TABLE {table}_audit (n SERIAL PRIMARY KEY, id INT, answer TEXT)",
        "CREATE FUNCTION {table}_note() RETURNS trigger AS $$ BEGIN INSERT INTO {table}_audit "
        "(id, answer) VALUES (new.id, new.answer); RETURN new; END $$ LANGUAGE plpgsql",
        "CREATE TRIGGER {table}_seen AFTER UPDATE OF answer ON {table} FOR EACH ROW "
        "EXECUTE FUNCTION {table}_note()",
    ),
    "mysql": (
        "CREATE TABLE {table}_audit (n INT AUTO_INCREMENT PRIMARY KEY, id INT, answer LONGTEXT)",
        # It has no trigger for one column: what else is written changes no answer.
        "CREATE TRIGGER {table}_seen AFTER UPDATE ON {table} FOR EACH ROW BEGIN "
        "IF NOT new.answer <=> old.answer OR new.state = 'done' THEN INSERT INTO {table}_audit "
        "(id, answer) VALUES (new.id, new.answer); END IF; END",
    ),
}


@pytest.fixture(scope="module")
def workers(tmp_path_factory):
    """Return what starts workers in processes of their own."""
    server = Forks(tmp_path_factory.mktemp("workers"), IMPORTS)
    yield server
    server.close()


@dataclass
class Gang:
    """Workers, one of which is hurt now and then."""

    queue: Queue
    server: Forks
    journal: Path
    dice: random.Random
    running: list[Fork] = field(default_factory=list)
    hurt: int = 0

    def start(self) -> None:
        settings = self.queue.settings
        given = (settings.db, settings.table, self.journal, self.dice.getrandbits(32), LEASE_S)
        self.running.append(self.server.start(WORKER, *given))

    def kill(self) -> None:
        victim = self.running.pop(self.dice.randrange(len(self.running)))
        assert victim.kill() == -9, victim.said()

    def replace(self) -> None:
        self.kill()
        self.start()
        self.hurt += 1

    def freeze(self) -> None:
        """Let one sleep until its leases have ended, and then go on as if nothing had happened."""
        victim = self.dice.choice(self.running)
        os.kill(victim.pid, signal.SIGSTOP)
        if self._holds(victim):
            time.sleep(LEASE_S + 0.3)
            self.hurt += 1
        os.kill(victim.pid, signal.SIGCONT)

    def _holds(self, worker: Fork) -> bool:
        """Say whether a worker has questions that others will take from it while it sleeps."""
        names = self.queue.sql("SELECT worker FROM {table} WHERE state = 'running'")
        return any(f"-{worker.pid}-" in name for (name,) in names)


def hurt_at_random(
    queue: Queue,
    server: Forks,
    folder: Path,
    hurt: Callable[[Gang], None] = Gang.replace,
    *,
    sessions: int,
    turns: int,
) -> Gang:
    """Submit questions, and have them answered by workers that do not live long."""
    for statement in AUDITS[queue.database.name.partition(":")[0].partition("+")[0]]:
        queue.sql(statement)
    for turn in range(turns):
        for session in range(sessions):
            queue.store.submit(f"{session}.{turn}", f"s{session}")
    gang = Gang(queue, server, folder / "journal", random.Random(7))
    for _ in range(WORKERS):
        gang.start()
    until = time.monotonic() + 60 + 0.5 * sessions * turns
    while queue.store.counts()["done"] < sessions * turns:
        assert time.monotonic() < until, (queue.store.counts(), [f.said() for f in gang.running])
        _let_work(queue, gang.dice, sessions * turns)
        hurt(gang)
    while gang.running:
        gang.kill()
    return gang


def _let_work(queue: Queue, dice: random.Random, total: int) -> None:
    """Wait for half a second, or until a few more are answered: some machines are quick."""
    wanted = queue.store.counts()["done"] + dice.randint(1, max(1, total // 12))
    until = time.monotonic() + dice.uniform(0.1, 0.5)
    while time.monotonic() < until and queue.store.counts()["done"] < min(wanted, total):
        time.sleep(0.01)


def check_written(queue: Queue, *, sessions: int, turns: int) -> None:
    """Look at what was answered, and what the database noted of it."""
    for session in range(sessions):
        for turn in range(turns):
            found = queue.store.get(turn * sessions + session + 1)
            before = f"{session}.{turn - 1}" if turn else "nothing"
            assert found.answer == f"{session}.{turn} after {before} "
    written = [each for (each,) in queue.sql("SELECT id FROM {table}_audit ORDER BY n")]
    assert sorted(written) == list(range(1, sessions * turns + 1))  # each once, none twice
    in_order: dict[int, list[int]] = defaultdict(list)
    for number in written:
        in_order[(number - 1) % sessions].append(number)
    assert all(numbers == sorted(numbers) for numbers in in_order.values())


def check_begun(gang: Gang) -> Counter[str]:
    """Look at what was begun, and return how often."""
    begun: dict[str, list[int]] = defaultdict(list)
    for line in gang.journal.read_text().splitlines():
        session, _, turn = line.partition(".")
        begun[session].append(int(turn))
    # One that was cut short is begun again; none is begun after a later one of its session.
    assert all(turns == sorted(turns) for turns in begun.values())
    return Counter(f"{s}.{turn}" for s, turns in begun.items() for turn in turns)


def test_each_question_is_answered_once_and_in_order(new_queue, workers, tmp_path):
    size = {"sessions": 8, "turns": 3}
    queue = new_queue()
    gang = hurt_at_random(queue, workers, tmp_path, **size)
    check_written(queue, **size)
    begun = check_begun(gang)
    assert gang.hurt > WORKERS and max(begun.values()) > 1  # some were cut short


@pytest.mark.parametrize(
    "new_queue",
    ["sqlite", "postgresql", pytest.param("mysql", marks=pytest.mark.parallel)],
    indirect=True,
)
def test_who_sleeps_through_a_lease_changes_nothing(new_queue, workers, tmp_path):
    """It wakes up with answers to questions that others have answered meanwhile."""
    size = {"sessions": 8, "turns": 2}
    queue = new_queue()
    gang = hurt_at_random(queue, workers, tmp_path, Gang.freeze, **size)
    check_written(queue, **size)
    assert gang.hurt  # some slept while they held questions


@pytest.mark.parallel
@pytest.mark.timeout(900)
def test_a_thousand_questions(new_queue, workers, tmp_path):
    size = {"sessions": 50, "turns": 20}
    queue = new_queue()
    began = time.monotonic()
    gang = hurt_at_random(queue, workers, tmp_path, **size)
    check_written(queue, **size)
    begun = check_begun(gang)
    again = sum(count - 1 for count in begun.values())
    seconds = time.monotonic() - began
    sys.stdout.write(f"{gang.hurt} kills, {again} begun again, {seconds:.0f} s\n")  # pytest -rP
