"""Who is at work: workers write down the names that they answer to, as long as they live.

A name that nobody has had for ``unserved_s`` is taken for a mistake: questions for it are refused
where they are asked, and those that other programs insert die instead of waiting for ever.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

from sqlalchemy import and_, delete, exists, insert, select, update

from glmkit import UnknownNameError

from .tables import DEAD, WAITING, asked_name, is_name, now

if TYPE_CHECKING:
    from sqlalchemy import ColumnElement, Connection

    from .database import Database
    from .settings import QueueSettings

_LONGEST_LIST = 20
"""Names that the reason of a dead question repeats."""


class Presence:
    """The workers of a queue, and the names that they answer to.

    :param database: where the queue is.
    :param settings: how long a silent worker counts as one, and its names as known.
    """

    def __init__(self, database: Database, settings: QueueSettings) -> None:
        self._database, self._settings = database, settings
        self._table = database.tables.workers

    def announce(self, worker: str, names: Iterable[str]) -> bool:
        """Say that a worker lives, and what it answers to, for the time of a lease.

        :param names: without spaces at their ends.
        :return: whether it had kept saying so: False the first time, and after it was away.
        """
        wanted = sorted({each for each in names if is_name(each)})
        table, values = self._table, {"lease_until": now() + self._settings.lease_s}
        mine = table.c.worker == worker
        kept = update(table).where(mine, table.c.lease_until > now()).values(values)

        def work(connection: Connection) -> bool:
            if wanted and connection.execute(kept).rowcount == len(wanted):
                return True
            connection.execute(delete(table).where(mine))
            for name in wanted:
                connection.execute(insert(table).values(worker=worker, model=name, **values))
            return False

        return self._database.write(work, lasting=False)

    def leave(self, worker: str) -> None:
        """Say that a worker ends; its names stay known for a while, as it may come back."""
        table = self._table
        mine = and_(table.c.worker == worker, table.c.lease_until > now())
        ended = update(table).where(mine).values(lease_until=now())
        self._database.write(lambda connection: connection.execute(ended), lasting=False)

    def known(self) -> set[str]:
        """Return the names that a worker has, or had a while ago."""
        names = select(self._table.c.model).where(self._lately()).distinct()
        return set(self._database.read(lambda connection: connection.scalars(names).all()))

    def working(self) -> dict[str, int]:
        """Return the names that can be asked for now, each with how many workers have it."""
        table = self._table
        pairs = select(table.c.model, table.c.worker).where(table.c.lease_until > now())
        rows = self._database.read(lambda connection: connection.execute(pairs).all())
        names = [name for name, _ in rows]
        return {name: names.count(name) for name in sorted(set(names))}

    def check(self, model: str | None) -> None:
        """Refuse a name that nobody has; where nobody works, any may be meant.

        :raises UnknownNameError: naming those that there are.
        """
        if model is None:
            return
        known = self.known()
        if known and model not in known:
            hint = "Start a worker that answers to it first"
            raise UnknownNameError("model", model, known, hint=hint)

    def end_unserved(self) -> int:
        """Let questions die whose name nobody has had as long as they wait, and return how many.

        Who calls this has kept announcing itself for ``unserved_s``: while it could, so could
        others, and after an outage they had the time to come back.
        """
        self._forget()
        questions, workers = self._database.tables.questions, self._table
        had = exists().where(workers.c.model == asked_name(questions), self._lately())
        before = now() - self._settings.unserved_s
        old = and_(questions.c.created < before, questions.c.due < before)
        lost = and_(questions.c.state == WAITING, questions.c.model.is_not(None), old, ~had)
        found = select(questions.c.id).where(lost).limit(1)
        if self._database.read(lambda connection: connection.scalar(found)) is None:
            return 0
        ended = update(questions).where(lost)
        ended = ended.values(state=DEAD, error=self._reason(), finished=now())
        return self._database.write(lambda connection: connection.execute(ended).rowcount)

    def _reason(self) -> str:
        names = sorted(self.known())
        told = ", ".join(names[:_LONGEST_LIST]) + ", ..." * (len(names) > _LONGEST_LIST)
        within = f"{self._settings.unserved_s:g} s"
        return f"no worker has answered to the name of this model for {within}; known: {told}"

    def _lately(self) -> ColumnElement[bool]:
        return self._table.c.lease_until > now() - self._settings.unserved_s

    def _forget(self) -> None:
        """Remove workers that are long gone."""
        gone = delete(self._table).where(~self._lately())
        self._database.write(lambda connection: connection.execute(gone), lasting=False)
