"""Who asks: questions in, answers out, cancelling, dead letters, cleaning up."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any

from sqlalchemy import ColumnElement, Connection, Row, delete, func, insert, select, update

from glmkit import BusyError, Message, UsageError

from .database import Database
from .presence import Presence
from .settings import QueueSettings
from .tables import (
    CANCELLED,
    DEAD,
    DONE,
    LONGEST_NAME,
    OPEN,
    STATES,
    WAITING,
    asked_name,
    is_name,
    now,
)

_DAY_S = 86400.0
_AT_ONCE = 500
"""Rows that one transaction removes, so that others are not kept waiting."""


class FullError(BusyError):
    """As many questions wait as may."""


class UnknownQuestionError(UsageError):
    """There is no question of this number."""


@dataclass(frozen=True)
class Question:
    """A question, and what has become of it."""

    id: int
    session: str | None
    question: str
    model: str | None
    state: str
    """``waiting``, ``running``, ``done``, ``dead`` or ``cancelled``."""
    answer: str | None
    """The whole answer; there once the state is ``done``."""
    partial: str | None
    """What has been answered so far, while it runs."""
    error: str | None
    """Why the last attempt failed."""
    finish_reason: str | None
    prompt_tokens: int | None
    completion_tokens: int | None
    sources: str | None
    """Where the answer comes from: a JSON list of ``path``, ``location``, ``text``, ``score``."""
    attempts: int
    created: float
    """Seconds since 1970 by the clock of the database, as the other times."""
    started: float | None
    finished: float | None
    token: int
    """Grows whenever somebody takes the question on: what is partial begins anew."""

    @property
    def settled(self) -> bool:
        """Whether it stays as it is, unless somebody asks for another try."""
        return self.state not in OPEN

    @classmethod
    def of(cls, row: Row[Any]) -> Question:
        """Return a row as a question."""
        return cls(**{each.name: _shown(getattr(row, each.name)) for each in fields(cls)})


class Store:
    """The askers' side of a queue.

    :param database: where it is.
    :param settings: how many may wait, and how long a question may be.
    """

    def __init__(self, database: Database, settings: QueueSettings) -> None:
        self._database, self._settings = database, settings
        self._table = database.tables.questions
        self.presence = Presence(database, settings)
        """Who answers."""
        self._columns = [self._table.c[each.name] for each in fields(Question)]

    def submit(
        self,
        question: str,
        session: str | None = None,
        *,
        model: str | None = None,
        options: Mapping[str, Any] | None = None,
    ) -> int:
        """Put a question at the end of the line, and return its number.

        :param session: questions of one session are answered one after the other, each with the
            turns before it; None: it stands alone.
        :param model: who shall answer; None: the workers' own choice.
        :param options: fields of :class:`~glmkit.GenerationOptions`.
        :raises FullError: if as many wait as may.
        :raises UsageError: if a text is empty, too long or no valid Unicode.
        :raises UnknownNameError: if there are workers, and none answers to ``model``.
        """
        self._check_text(question)
        values: dict[str, Any] = {"question": question, "session": _name("session", session)}
        values["model"] = _name("model", None if model is None else model.rstrip(" "))
        values["options"] = json.dumps(dict(options)) if options else None
        self.presence.check(values["model"])

        def work(connection: Connection) -> int:
            self._check_room(connection)
            done = connection.execute(insert(self._table).values(values))
            assert done.inserted_primary_key is not None
            return int(done.inserted_primary_key[0])

        return self._database.write(work)

    def get(self, number: int) -> Question:
        """Return a question.

        :raises UnknownQuestionError: if there is none of this number.
        """
        found = self.look([number]).get(number)
        if found is None:
            raise _unknown(number)
        return found

    def look(self, numbers: Iterable[int]) -> dict[int, Question]:
        """Return those of several questions that exist, by number."""
        wanted = select(*self._columns).where(self._table.c.id.in_(list(numbers)))
        rows = self._database.read(lambda connection: connection.execute(wanted).all())
        return {row.id: Question.of(row) for row in rows}

    def ahead(self, question: Question) -> int:
        """Return how many questions wait before one that waits; 0 if it does not."""
        if question.state != WAITING:
            return 0
        return self._count(self._table.c.state == WAITING, self._table.c.id < question.id)

    def cancel(self, number: int) -> bool:
        """Take a question back; a running answer is stopped, what it said stays in ``partial``.

        :return: False if it was settled already.
        :raises UnknownQuestionError: if there is none of this number.
        """
        table = self._table
        # A new token: whoever answers it now has lost it and finds out at the next beat.
        values = {"state": CANCELLED, "token": table.c.token + 1, "finished": now()}
        free = {"busy_session": None, "lease_until": None}
        done = self._update([table.c.id == number, table.c.state.in_(OPEN)], values | free)
        if not done:
            self.get(number)
        return bool(done)

    def listed(self, state: str, *, limit: int = 100) -> list[Question]:
        """Return questions in a state, the latest first."""
        table = self._table
        wanted = select(*self._columns).where(table.c.state == state)
        wanted = wanted.order_by(table.c.id.desc()).limit(limit)
        rows = self._database.read(lambda connection: connection.execute(wanted).all())
        return [Question.of(row) for row in rows]

    def retry(self, numbers: Sequence[int] | None = None) -> int:
        """Let dead questions be tried again from the first attempt, and return how many.

        :param numbers: which; None: all. Those that are not dead are left alone.
        """
        table = self._table
        which: list[ColumnElement[bool]] = [table.c.state == DEAD]
        if numbers is not None:
            which.append(table.c.id.in_(list(numbers)))
        # Due from now on, not from ever: it has not waited in vain for its model yet.
        return self._update(
            which, {"state": WAITING, "attempts": 0, "due": now(), "finished": None}
        )

    def purge(self, days: float, states: Sequence[str] = (DONE, CANCELLED)) -> int:
        """Remove questions that were settled ``days`` ago or earlier, and return how many.

        Their turns are missed by sessions that go on.

        :param states: of these; never those that are still open.
        """
        table = self._table
        settled = [each for each in states if each not in OPEN]
        old = [table.c.state.in_(settled), table.c.finished <= now() - days * _DAY_S]

        def work(connection: Connection) -> int:
            some = select(table.c.id).where(*old).order_by(table.c.id).limit(_AT_ONCE)
            numbers = connection.scalars(some).all()
            done = connection.execute(delete(table).where(table.c.id.in_(numbers), *old))
            return done.rowcount

        removed = 0
        while count := self._database.write(work):
            removed += count
        return removed

    def ping(self) -> None:
        """Look whether the database can be reached.

        :raises DatabaseError: if not.
        """
        self._database.read(lambda connection: connection.scalar(select(1)))

    def counts(self) -> dict[str, int]:
        """Return how many questions there are in each state."""
        grouped = select(self._table.c.state, func.count()).group_by(self._table.c.state)
        rows = self._database.read(lambda connection: connection.execute(grouped).all())
        found = {state: count for state, count in rows}
        return {state: int(found.get(state, 0)) for state in STATES}

    def waiting_for(self) -> dict[str | None, int]:
        """Return how many wait for each model; None: for whichever the workers have."""
        table, model = self._table, asked_name(self._table)
        grouped = select(model, func.count()).where(table.c.state == WAITING).group_by(model)
        rows = self._database.read(lambda connection: connection.execute(grouped).all())
        return {_shown(model): int(count) for model, count in rows}

    def _check_text(self, question: str) -> None:
        if "\0" in Message("user", question).content:
            raise UsageError("a question cannot hold the character NUL; leave it out")
        if not question.strip():
            raise UsageError("a question needs a text")
        longest = self._settings.max_chars
        if len(question) > longest:
            raise UsageError(
                f"a question has {longest} characters at most, got {len(question)}; ask a shorter "
                "one"
            )

    def _check_room(self, connection: Connection) -> None:
        """Refuse more than may wait; a few more get in where databases let writers overlap."""
        waiting = select(func.count()).where(self._table.c.state == WAITING)
        found, most = connection.scalar(waiting) or 0, self._settings.max_waiting
        if found >= most:
            raise FullError(f"{found} questions wait, and {most} may; ask again in a while")

    def _count(self, *which: ColumnElement[bool]) -> int:
        counted = select(func.count()).select_from(self._table).where(*which)
        return self._database.read(lambda connection: connection.scalar(counted)) or 0

    def _update(self, which: Sequence[ColumnElement[bool]], values: Mapping[str, Any]) -> int:
        changed = update(self._table).where(*which).values(values)
        return self._database.write(lambda connection: connection.execute(changed).rowcount)


def _shown(value: Any) -> Any:  # noqa: ANN401
    """Return what a column holds; what other programs wrote there may be no Unicode."""
    if isinstance(value, bytes):
        return value.decode("utf-8", "replace")
    return value.encode("utf-8", "replace").decode() if isinstance(value, str) else value


def _unknown(number: int) -> UnknownQuestionError:
    return UnknownQuestionError(f"there is no question {number}; it may have been purged")


def _name(what: str, name: str | None) -> str | None:
    if name is None:
        return None
    if not is_name(name):
        raise UsageError(f"a {what} is 1 to {LONGEST_NAME} printable characters, got {name!r:.80}")
    return name
