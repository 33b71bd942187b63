"""Who answers: taking questions on, showing signs of life, writing answers.

A question is taken on for a while, its *lease*, with a *token* that grows each time. Whoever writes
shows the token: a worker that was thought dead, and whose question somebody else has taken on,
can write no more. Time is the database's own, so workers' clocks may differ.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from sqlalchemy import ColumnElement, Connection, and_, exists, or_, select, update
from sqlalchemy.exc import IntegrityError

from glmkit import Message, Reply

from .database import Database
from .settings import QueueSettings
from .tables import DEAD, DONE, RUNNING, WAITING, asked_name, now

_LONGEST_PAUSE_S = 300.0
_LONGEST_ERROR = 1000
_FREE: Mapping[str, Any] = {"busy_session": None, "lease_until": None}


@dataclass(frozen=True)
class Lease:
    """A question that a worker has taken on."""

    id: int
    token: int
    session: str | None
    question: str
    model: str | None
    options: str | None
    """Fields of :class:`~glmkit.GenerationOptions` as JSON, unchecked."""
    attempts: int
    """This one included."""


class Leases:
    """The workers' side of a queue.

    :param database: where it is.
    :param settings: how long a lease is, and how often a question is tried.
    """

    def __init__(self, database: Database, settings: QueueSettings) -> None:
        self._database, self._settings = database, settings
        self._table = database.tables.questions

    def claim(self, worker: str, limit: int, models: Collection[str]) -> list[Lease]:
        """Take on the questions that have waited longest.

        Of a session, only the earliest open question can be taken on, and while it runs no other.

        :param worker: who takes them on.
        :param limit: how many at most.
        :param models: names that the worker answers under, without spaces at their ends; questions
            for others are left alone.
        """
        self._end_expired()
        table = self._table
        wanted = (
            select(table.c.id)
            .where(table.c.state == WAITING, table.c.due <= now(), ~self._blocked())
            .where(or_(table.c.model.is_(None), asked_name(table).in_(list(models))))
            .order_by(table.c.id)
            .limit(limit)
        )
        # An idle queue is left to those who ask: looking takes no lock.
        if self._database.read(lambda connection: connection.scalar(wanted)) is None:
            return []
        values = {
            "state": RUNNING,
            "token": table.c.token + 1,
            "attempts": table.c.attempts + 1,
            "worker": worker,
            "busy_session": table.c.session,
            "lease_until": now() + self._settings.lease_s,
            "started": now(),
            "partial": None,
        }
        columns = [table.c[name] for name in Lease.__dataclass_fields__]

        def work(connection: Connection) -> list[Lease]:
            numbers = connection.scalars(wanted.with_for_update(skip_locked=True)).all()
            mine = table.c.id.in_(numbers)
            connection.execute(update(table).where(mine).values(values))
            rows = connection.execute(select(*columns).where(mine).order_by(table.c.id))
            return [Lease(*row) for row in rows]

        try:
            return self._database.write(work, lasting=False)
        except IntegrityError:
            return []  # another worker took on a question of the same session: look again later

    def _blocked(self) -> ColumnElement[bool]:
        """Say that an earlier question of the session is open, or any of it runs."""
        table = self._table
        other = table.alias("other")
        earlier = and_(other.c.state == WAITING, other.c.id < table.c.id)
        return exists().where(
            other.c.session == table.c.session, or_(other.c.state == RUNNING, earlier)
        )

    def history(self, lease: Lease) -> list[Message]:
        """Return the answered turns of the session before a question, the last few of them."""
        table = self._table
        if lease.session is None or not self._settings.history:
            return []
        turns = (
            select(table.c.question, table.c.answer)
            .where(table.c.session == lease.session, table.c.state == DONE)
            .where(table.c.id < lease.id)
            .order_by(table.c.id.desc())
            .limit(self._settings.history)
        )
        rows = self._database.read(lambda connection: connection.execute(turns).all())
        history: list[Message] = []
        for question, answer in reversed(rows):
            history += [Message("user", clean(question)), Message("assistant", clean(answer or ""))]
        return history

    def held(self, leases: Iterable[Lease]) -> set[int]:
        """Return the numbers of the questions that still are their worker's."""
        tokens = {lease.id: lease.token for lease in leases}
        table = self._table
        running = select(table.c.id, table.c.token)
        running = running.where(table.c.id.in_(list(tokens)), table.c.state == RUNNING)
        rows = self._database.read(lambda connection: connection.execute(running).all())
        return {number for number, token in rows if tokens[number] == token}

    def renew(self, said: Sequence[tuple[Lease, str | None]]) -> None:
        """Show a sign of life for each question, with what has been answered so far.

        :param said: text None leaves it as it is. Those that are lost are passed over.
        """
        values: dict[str, Any] = {"lease_until": now() + self._settings.lease_s}

        def work(connection: Connection) -> None:
            # All in the order of their numbers, so that two workers never wait for each other.
            for lease, text in sorted(said, key=lambda each: each[0].id):
                new = values if text is None else values | {"partial": clean(text)}
                connection.execute(self._of(lease).values(new))

        self._database.write(work, lasting=False)

    def settle(self, lease: Lease, reply: Reply) -> bool:
        """Write the answer.

        :return: False if the question is no longer this worker's; then nothing was written.
        """
        answer = {
            "answer": clean(reply.text),
            "finish_reason": reply.finish_reason,
            "prompt_tokens": reply.usage.prompt_tokens,
            "completion_tokens": reply.usage.completion_tokens,
            "sources": _sources(reply),
        }
        ended = {"state": DONE, "finished": now(), "error": None, "partial": None}
        return self._write(lease, answer | ended | dict(_FREE))

    def fail(self, lease: Lease, error: str, *, final: bool = False) -> bool:
        """Put a question aside until its next attempt, or for good after the last one.

        :param final: no other attempt would do better.
        :return: False if the question is no longer this worker's.
        """
        said = {"error": clean(error)[:_LONGEST_ERROR], **_FREE}
        if final or lease.attempts >= self._settings.max_attempts:
            return self._write(lease, said | {"state": DEAD, "finished": now()})
        pause = self._settings.backoff_s * 2.0 ** min(lease.attempts - 1, 32)
        due = now() + min(pause, _LONGEST_PAUSE_S)
        return self._write(lease, said | {"state": WAITING, "due": due, "partial": None})

    def give_back(self, lease: Lease) -> bool:
        """Let others have a question at once, as if it had not been taken on.

        :return: False if it is no longer this worker's.
        """
        fewer = {"attempts": self._table.c.attempts - 1, "partial": None, "due": 0.0}
        return self._write(lease, {"state": WAITING, **fewer, **_FREE})

    def _end_expired(self) -> None:
        """Put back what was taken on by workers that give no sign of life."""
        table = self._table
        expired = and_(table.c.state == RUNNING, table.c.lease_until < now())
        found = select(table.c.id).where(expired).limit(1)
        if self._database.read(lambda connection: connection.scalar(found)) is None:
            return
        most = self._settings.max_attempts
        said = "the worker gave no sign of life while it answered this"
        again = update(table).where(expired, table.c.attempts < most)
        again = again.values(state=WAITING, error=said, due=0.0, partial=None, **_FREE)
        enough = update(table).where(expired, table.c.attempts >= most)
        enough = enough.values(state=DEAD, error=said, finished=now(), **_FREE)

        def work(connection: Connection) -> None:
            connection.execute(again)
            connection.execute(enough)

        self._database.write(work)

    def _of(self, lease: Lease) -> Any:  # noqa: ANN401
        """Return an update of a question that only its present worker can make."""
        table = self._table
        mine = and_(table.c.id == lease.id, table.c.token == lease.token)
        return update(table).where(mine, table.c.state == RUNNING)

    def _write(self, lease: Lease, values: Mapping[str, Any]) -> bool:
        changed = self._of(lease).values(values)
        return self._database.write(lambda connection: connection.execute(changed).rowcount == 1)


def clean(text: str) -> str:
    """Return a text without what a database cannot hold."""
    return text.replace("\0", "\ufffd").encode("utf-8", "replace").decode("utf-8")


def _sources(reply: Reply) -> str | None:
    fields = ("path", "location", "text", "score")
    found = [{name: getattr(each, name) for name in fields} for each in reply.sources]
    return clean(json.dumps(found, ensure_ascii=False)) if found else None
