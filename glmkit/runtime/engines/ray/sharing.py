"""Which rows go to which worker: pure bookkeeping, knows nothing of Ray.

Every worker has a few rows waiting beside those that it answers, so that its decoder never runs
dry, and no more, so that any number of rows takes no memory. What a lost worker had is asked again
in small groups, and at last alone: so a row that kills its workers is found, and only that row
becomes an error.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Hashable, Iterable, Iterator
from dataclasses import dataclass
from typing import NamedTuple

from ....types import Ask

AHEAD = 64
"""Rows that wait in a worker beside those that it answers."""

_GROUPS = (8, 1)
"""How many rows a worker gets at a time that were with one worker when it was lost; with two."""


class Order(NamedTuple):
    """What a worker is told."""

    asks: list[Ask]
    more: bool
    """Whether rows will follow; if not, the worker need not wait for them."""
    give_back: int = 0
    """How many of the rows that it has not begun it is to return."""


@dataclass(eq=False)
class _Row:
    ask: Ask
    lost: int = 0
    """Workers that were lost with it."""


class Sharing:
    """The rows of one job.

    :param asked: drawn from as workers have room.
    :param ahead: how many rows wait in a worker beside those that it answers.
    """

    def __init__(self, asked: Iterable[Ask], *, ahead: int = AHEAD) -> None:
        self._ahead = ahead
        self._fresh: Iterator[_Row] = map(_Row, asked)
        self._drawn = False
        """All fresh rows are."""
        self._back: deque[_Row] = deque()
        """Taken back from workers that had not begun them."""
        self._suspects: deque[_Row] = deque()
        """Lost with a worker; those lost more often come last."""
        self._given: dict[Hashable, dict[int, _Row]] = {}
        self._examiner: Hashable | None = None
        """The worker that is kept for suspects while there are any."""

    @property
    def over(self) -> bool:
        """Whether every row has its outcome."""
        waits = bool(self._back or self._suspects) or any(self._given.values())
        return self._drawn and not waits

    def join(self, worker: Hashable) -> None:
        """Take in a worker that is ready."""
        self._given[worker] = {}

    def holds(self, worker: Hashable) -> int:
        """Return how many rows a worker has."""
        return len(self._given[worker])

    def order(self, worker: Hashable, waiting: int) -> Order:
        """Say what a worker does next.

        :param waiting: rows that it has and has not begun.
        """
        if not self._suspects:
            self._examiner = None
        elif self._examiner not in self._given:
            self._examiner = worker
        if not self._given[worker] and (group := self._group(worker)):
            return self._give(worker, group, more=False)
        if self._examiner == worker or self._examines(worker):
            return Order([], more=False)
        rows = self._next(self._ahead - waiting)
        return self._give(worker, rows, more=not self._drawn, spare=waiting)

    def settle(self, worker: Hashable, key: int) -> bool:
        """Take note of a row's outcome; False if the row is not this worker's."""
        return self._given[worker].pop(key, None) is not None

    def returned(self, worker: Hashable, keys: Iterable[int]) -> None:
        """Take rows back that a worker had not begun."""
        rows = self._given[worker]
        self._back.extend(rows.pop(key) for key in keys if key in rows)

    def lose(self, worker: Hashable) -> list[int]:
        """Ask a lost worker's rows again; return the keys of those that are given up."""
        rows = self._given.pop(worker, {}).values()
        if self._examiner == worker:
            self._examiner = None
        for row in rows:
            row.lost += 1
        alone = len(rows) == 1
        guilty = [each for each in rows if alone and each.lost > len(_GROUPS)]
        kept = [each for each in rows if each not in guilty]
        self._suspects = deque(sorted([*self._suspects, *kept], key=lambda each: each.lost))
        return [each.ask.key for each in guilty]

    def _give(self, worker: Hashable, rows: list[_Row], *, more: bool, spare: int = 0) -> Order:
        self._given[worker] |= {each.ask.key: each for each in rows}
        idle = any(not held for held in self._given.values())
        give_back = (spare + 1) // 2 if idle and not rows and not more else 0
        return Order([each.ask for each in rows], more, give_back)

    def _group(self, worker: Hashable) -> list[_Row]:
        """Return suspects that are asked together; none if this worker has better to do."""
        if not self._suspects or not (self._examiner == worker or self._drawn):
            return []
        lost = self._suspects[0].lost
        most = _GROUPS[min(lost, len(_GROUPS)) - 1]
        group: list[_Row] = []
        while self._suspects and len(group) < most and self._suspects[0].lost == lost:
            group.append(self._suspects.popleft())
        return group

    def _examines(self, worker: Hashable) -> bool:
        return any(each.lost for each in self._given[worker].values())

    def _next(self, count: int) -> list[_Row]:
        rows: list[_Row] = []
        while len(rows) < count:
            row = self._back.popleft() if self._back else next(self._fresh, None)
            if row is None:
                self._drawn = True
                break
            rows.append(row)
        return rows
