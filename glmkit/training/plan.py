"""Which examples each pass of a run takes: known before it begins, equal on all machines.

A *row* is what a pass counts by: one example, or with packing several that fill it. A *step* takes
``batch_size x accumulation x world`` rows, the last of an epoch what is left. It is parted into
passes of like length, and process r takes the passes r, r + world, ...: how many processes share
the passes of a step changes nothing in what it learns from.

The order comes from raw random bits, whose meaning no version of numpy changes.
"""

from __future__ import annotations

import heapq
from dataclasses import dataclass
from functools import cached_property, lru_cache

import numpy as np

from ..errors import UsageError

Rows = list[np.ndarray]

_PACKED_AT_ONCE = 8192
"""Examples that are packed together: enough for full rows, few enough that what lies far apart in
the random order stays apart."""
_GROUPED_AT_ONCE = 50
"""Steps among whose rows those of like length are put together."""


@dataclass(frozen=True, kw_only=True)
class Shape:
    """How a run parts its data.

    :raises UsageError: if a number is below 1.
    """

    batch_size: int = 4
    """Rows of a pass."""
    accumulation: int = 1
    """Passes of a step in each process."""
    world: int = 1
    """Processes."""
    seed: int = 42
    group_by_length: bool = False
    """Put rows of like length into one step."""
    pack_to: int = 0
    """Fill rows up to so many tokens; 0: each example is a row."""

    def __post_init__(self) -> None:
        for name in ("batch_size", "accumulation", "world"):
            if getattr(self, name) < 1:
                raise UsageError(f"{name} must be 1 or more, got {getattr(self, name)!r}")

    @property
    def passes(self) -> int:
        """The passes of a whole step, all processes together."""
        return self.accumulation * self.world

    @property
    def rows(self) -> int:
        """The rows of a whole step."""
        return self.passes * self.batch_size


class Plan:
    """The batches of all epochs.

    :param lengths: tokens of each example, int (n,), n >= 1.
    :raises UsageError: if there are no examples.
    """

    def __init__(self, lengths: np.ndarray, shape: Shape) -> None:
        if not len(lengths):
            raise UsageError("there are no samples to train on")
        self.lengths = np.asarray(lengths, np.int64)
        self.shape = shape
        self._order = lru_cache(maxsize=2)(self._drawn)

    @cached_property
    def _packed(self) -> Rows | None:
        """The examples of each row; None: row i is example i."""
        if not self.shape.pack_to:
            return None
        order = _shuffled(len(self.lengths), self.shape.seed, 0)
        rows: Rows = []
        for start in range(0, len(order), _PACKED_AT_ONCE):
            some = order[start : start + _PACKED_AT_ONCE]
            rows += [some[each] for each in packed(self.lengths[some], self.shape.pack_to)]
        return rows

    @cached_property
    def _row_lengths(self) -> np.ndarray:
        if self._packed is None:
            return self.lengths
        return np.array([self.lengths[each].sum() for each in self._packed])

    @property
    def rows(self) -> int:
        """How many rows an epoch has."""
        return len(self._row_lengths)

    @property
    def steps_per_epoch(self) -> int:
        """How many steps every epoch has."""
        return -(-self.rows // self.shape.rows)

    @property
    def longest(self) -> int:
        """The tokens that no pass has more of: those of its longest rows, all in one."""
        count = min(self.shape.batch_size, self.rows)
        return int(np.sort(self._row_lengths)[-count:].sum())

    @property
    def fill(self) -> float:
        """How full packed rows are, up to 1; 1 without packing."""
        room = self.rows * self.shape.pack_to
        return float(self.lengths.sum() / room) if room else 1.0

    def passes(self, epoch: int, step: int) -> Rows:
        """Return the examples of all passes of a step.

        There are a multiple of ``world`` passes where there are rows enough for that.

        :param epoch: from 0.
        :param step: in that epoch, from 0 to ``steps_per_epoch - 1``.
        """
        rows = self._order(epoch)[step * self.shape.rows : (step + 1) * self.shape.rows]
        parts = balanced(self._row_lengths[rows], self._parts(len(rows)))
        return [self._examples(rows[each]) for each in parts]

    def _parts(self, rows: int) -> int:
        """Return how many passes so many rows become: as few as may be, no process without."""
        shape = self.shape
        least = max(-(-rows // shape.batch_size), min(shape.world, rows))
        even = -(-least // shape.world) * shape.world
        return even if even <= rows else least

    def _examples(self, rows: np.ndarray) -> np.ndarray:
        if self._packed is None:
            return rows
        return np.concatenate([self._packed[each] for each in rows])

    def _drawn(self, epoch: int) -> np.ndarray:
        """Return the order of the rows in an epoch."""
        order = _shuffled(self.rows, self.shape.seed, epoch + 1)
        if not self.shape.group_by_length or self._packed is not None:
            return order
        size = self.shape.rows
        within = np.arange(len(order)) // (size * _GROUPED_AT_ONCE)
        order = order[np.lexsort((-self._row_lengths[order], within))]
        # Whole steps change places; what is left for the last one stays there.
        whole = len(order) // size
        steps = _shuffled(whole, self.shape.seed, epoch + 1)
        return np.concatenate(
            (order[: whole * size].reshape(whole, size)[steps].ravel(), order[whole * size :])
        )


def _shuffled(count: int, seed: int, stream: int) -> np.ndarray:
    """Return the numbers below ``count`` in random order."""
    bits = np.random.PCG64(np.random.SeedSequence([seed & (2**64 - 1), stream]))
    return np.argsort(bits.random_raw(count), kind="stable")


def packed(lengths: np.ndarray, room: int) -> Rows:
    """Fill rows of ``room`` tokens with whole examples, the longest first, each where it fits best.

    :return: for each row the places of its examples in ``lengths``, ascending. What is longer than
        ``room`` has a row of its own.
    """
    rows: list[list[int]] = []
    free: dict[int, list[int]] = {}  # room left -> rows that have it
    some = 0  # its bit n is set where free[n] holds a row
    for at in np.argsort(-lengths, kind="stable").tolist():
        size = int(lengths[at])
        fits = some >> size
        if fits:
            left = size + (fits & -fits).bit_length() - 1
            row = free[left].pop()
            if not free[left]:
                some &= ~(1 << left)
        else:
            left, row = max(room, size), len(rows)
            rows.append([])
        rows[row].append(at)
        free.setdefault(left - size, []).append(row)
        some |= 1 << (left - size)
    return [np.array(sorted(row)) for row in rows]


def balanced(lengths: np.ndarray, parts: int) -> Rows:
    """Part rows so that each part has as many, give or take one, and about as many tokens.

    :return: for each part the places of its rows in ``lengths``, ascending.
    """
    most, larger = divmod(len(lengths), parts)
    found: list[list[int]] = [[] for _ in range(parts)]
    lightest = [(0, part) for part in range(parts)]
    for at in np.argsort(-lengths, kind="stable").tolist():
        while True:
            tokens, part = heapq.heappop(lightest)
            if len(found[part]) < most:
                break
            if larger:  # the parts that hold one more
                larger -= 1
                break
        found[part].append(at)
        if len(found[part]) <= most:
            heapq.heappush(lightest, (tokens + int(lengths[at]), part))
    return [np.array(sorted(part), dtype=np.int64) for part in found]
