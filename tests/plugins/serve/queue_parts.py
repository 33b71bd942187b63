"""What the tests of the queue share."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

from sqlalchemy import text, update

from glmkit import Chunk, Reply, Usage
from glmkit_serve.queue.database import Database
from glmkit_serve.queue.leases import Lease, Leases
from glmkit_serve.queue.settings import QueueSettings
from glmkit_serve.queue.store import Store


@dataclass
class Queue:
    """A queue and both its sides."""

    database: Database
    settings: QueueSettings

    def __post_init__(self) -> None:
        self.store = Store(self.database, self.settings)
        self.leases = Leases(self.database, self.settings)

    def claim(self, limit: int = 1, worker: str = "w", models: tuple[str, ...] = ()) -> list[Lease]:
        return self.leases.claim(worker, limit, models)

    def take(self) -> Lease:
        """Take on the next question, which there is."""
        (lease,) = self.claim()
        return lease

    def state(self, number: int) -> str:
        return self.store.get(number).state

    def set(self, number: int, **values: object) -> None:
        """Write columns behind everybody's back."""
        table = self.database.tables.questions
        changed = update(table).where(table.c.id == number).values(values)
        self.database.write(lambda connection: connection.execute(changed))

    def expire(self, number: int) -> None:
        """Let time pass until the lease has ended."""
        self.set(number, lease_until=1.0)

    def sql(self, statement: str, **values: object) -> list[tuple]:
        """Do what another program would, in plain SQL; the table is called {table} here."""
        statement = statement.replace("{table}", self.settings.table)

        def work(connection):
            done = connection.execute(text(statement), values)
            return [tuple(row) for row in done] if done.returns_rows else []

        # Who only looks waits for no writer: one of them may be asleep.
        looks = statement.startswith("SELECT")
        return (self.database.read if looks else self.database.write)(work)


def open_at(path: Path, **settings: object) -> Queue:
    """Open a queue in an SQLite file, without waiting for the disk."""
    return opened(f"sqlite:///{path}", **settings)


def opened(url: str, **settings: object) -> Queue:
    """Open a queue in any database."""
    quick = QueueSettings(db=url, poll_s=0.01, stream_s=0.01, backoff_s=0.0)
    chosen = replace(quick, **settings)
    return Queue(Database.open(url, chosen.table, durable=False), chosen)


def reply(text: str) -> Reply:
    return Reply.join([Chunk(text), Chunk("", "stop", Usage(3, 2))])
