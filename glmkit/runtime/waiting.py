"""Rows that wait for a slot: what of them is known already, and which of them run together."""

from __future__ import annotations

from collections.abc import Hashable, Iterator, Mapping
from dataclasses import dataclass

import numpy as np

from .reuse import LEAST, Entry, Kept, shared
from .rows import Row

MARGIN = 64
"""Tokens of an answer that a row is given room for when it comes in. It may need more, and go back
to wait if there is none; most answers end before they are as long as they may be."""

_TRIED = 8
"""Running rows that a new one is compared with: what many share, any of them has."""


@dataclass(eq=False)
class Waiting:
    """A row that was drawn and is not in the cache, or only with its beginning."""

    row: Row
    ids: np.ndarray
    """What is to be computed: the prompt, and for a row that had to go, what it got so far."""
    worn: Hashable
    known: int = 0
    """Tokens whose keys and values are there, or can be taken over."""
    source: int | Entry | None = None
    """From where: the slot of a running row, or an entry."""

    @property
    def left(self) -> int:
        """Tokens still to be computed."""
        return len(self.ids) - self.known

    @property
    def needs(self) -> int:
        """Tokens that its slot should hold when it comes in."""
        return needs(len(self.ids), self.row)


def needs(tokens: int, row: Row) -> int:
    """Return what a row of so many tokens has use for in the near future."""
    return tokens + min(MARGIN, max(row.left, 1))


class Waitlist:
    """Draws rows, and says which come in next.

    :param reusable: whether rows that begin alike may share keys and values.
    :param even: prompts run together if the shortest has this share of the longest, 0 to 1; the
        rest would be pads.
    """

    def __init__(
        self, rows: Iterator[Row | None], *, reusable: bool, kept: Kept | None, even: float
    ) -> None:
        self._rows, self._even = rows, even
        self._reusable, self._kept = reusable, kept if reusable else None
        self.ready: list[Waiting] = []
        self.over = False
        """No more rows can be drawn."""

    def __bool__(self) -> bool:
        return bool(self.ready)

    def draw(self) -> Row | None:
        """Return the next row; None if there is none now, or at all."""
        if self.over:
            return None
        try:
            return next(self._rows)
        except StopIteration:
            self.over = True
            return None

    def group(self, inside: Mapping[Row, Waiting]) -> list[Waiting]:
        """Return rows that run together, the first that waits among them, the longest first.

        :param inside: what runs, in the order of the slots.
        """
        for each in self.ready:
            self._look_up(each, inside)
        first = self.ready[0]
        if any(self._alike(first, each) for each in self.ready[1:]):
            return [first]  # the others begin with what it leaves
        alike = [each for each in self.ready if each.known == first.known]
        alike.sort(key=lambda each: -each.left)
        start = next(at for at, each in enumerate(alike) if each.left * self._even <= first.left)
        longest = alike[start].left
        return [each for each in alike[start:] if each.left >= longest * self._even]

    def cut(self, group: list[Waiting], rows: int) -> list[Waiting]:
        """Return at most so many rows of a group, with the first that waits among them."""
        first = self.ready[0]
        cut = group[:rows]
        return cut if first in cut else [*group[: rows - 1], first]

    def take(self, group: list[Waiting]) -> None:
        """Let rows go in."""
        self.ready = [each for each in self.ready if each not in group]

    def _alike(self, first: Waiting, other: Waiting) -> bool:
        """Tell whether a row had better wait for what the first will leave in its slot."""
        if not self._reusable or first.worn != other.worn:
            return False
        return useful(shared(first.ids, other.ids), other.ids) > other.known

    def _look_up(self, waiting: Waiting, inside: Mapping[Row, Waiting]) -> None:
        """Find what is known of a row's beginning."""
        waiting.known, waiting.source = 0, None
        if not self._reusable:
            return
        if self._kept is not None:
            length, entry = self._kept.find(waiting.ids, waiting.worn)
            waiting.known, waiting.source = useful(length, waiting.ids), entry
        tried = 0
        for slot, each in enumerate(inside.values()):
            if each.worn == waiting.worn and each.ids[0] == waiting.ids[0] and tried < _TRIED:
                tried += 1
                length = useful(shared(each.ids, waiting.ids), waiting.ids)
                if length > waiting.known:
                    waiting.known, waiting.source = length, slot


def useful(length: int, ids: np.ndarray) -> int:
    """Return how many tokens of a common beginning are taken over.

    The last token is always computed, for its scores; and whole blocks only, so that rows which
    happen to agree in a word more than others still run together with them.
    """
    return min(length, len(ids) - 1) // LEAST * LEAST
