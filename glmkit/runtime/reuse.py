"""Keys and values that rows leave behind, for rows that begin as they did.

The next turn of a chat begins with all that was said before; the rows of a job with the same
instructions. What is alike is taken over instead of being computed again.

Shapes: L layers, G key/value heads, D head size, N tokens of an entry.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Hashable, Sequence
from dataclasses import dataclass

import numpy as np
from torch import Tensor

LEAST = 16
"""Tokens: fewer in common are not worth the copying."""


def shared(one: np.ndarray, other: np.ndarray) -> int:
    """Return how many tokens two rows begin with in common."""
    most = min(len(one), len(other))
    differ = np.flatnonzero(one[:most] != other[:most])
    return int(differ[0]) if len(differ) else most


@dataclass(frozen=True, eq=False)
class Entry:
    """What one row left."""

    ids: np.ndarray
    """Token ids (N)."""
    worn: Hashable
    """What the model wore: other adapters give other keys and values."""
    kv: list[Tensor]
    """For each layer (2G, N, D)."""

    @property
    def bytes(self) -> int:
        """Its size; the layers are alike."""
        return len(self.kv) * self.kv[0].numel() * self.kv[0].element_size()


class Kept:
    """The latest entries, up to a size.

    :param limit: bytes; the entries used longest ago leave first.
    """

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self.bytes = 0
        self._entries: OrderedDict[int, Entry] = OrderedDict()
        self._alike: dict[tuple[Hashable, bytes], list[int]] = {}
        """Entries by what was worn and their first tokens; the latest are last."""
        self._next = 0

    def __len__(self) -> int:
        return len(self._entries)

    def find(self, ids: np.ndarray, worn: Hashable) -> tuple[int, Entry | None]:
        """Return how many tokens the best entry shares with ``ids``, and the entry.

        :return: (0, None) where fewer than :data:`LEAST` tokens are shared.
        """
        best, found = 0, -1
        for number in self._alike.get(_key(ids, worn), [])[-_TRIED:]:
            length = shared(self._entries[number].ids, ids)
            if length > best:
                best, found = length, number
        if found < 0:
            return 0, None
        self._entries.move_to_end(found)
        return best, self._entries[found]

    def takes(self, tokens: int, size: int) -> bool:
        """Tell whether a row of so many tokens and bytes is kept at all."""
        return tokens >= LEAST and size <= self.limit

    def add(self, ids: Sequence[int], worn: Hashable, kv: list[Tensor]) -> None:
        """Keep a row; entries that it contains leave.

        :param kv: for each layer (2G, N, D), copied by the caller.
        """
        entry = Entry(np.asarray(ids, dtype=np.int64), worn, kv)
        if not self.takes(len(entry.ids), entry.bytes):
            return
        alike = self._alike.setdefault(_key(entry.ids, worn), [])
        for number in alike[-_TRIED:]:
            known = self._entries[number].ids
            if shared(known, entry.ids) == len(known):
                self._drop(number)
        self._entries[self._next] = entry
        self._alike.setdefault(_key(entry.ids, worn), []).append(self._next)
        self._next += 1
        self.bytes += entry.bytes
        while self.bytes > self.limit or len(self._entries) > _MOST:
            self._drop(next(iter(self._entries)))

    def _drop(self, number: int) -> None:
        entry = self._entries.pop(number)
        self.bytes -= entry.bytes
        key = _key(entry.ids, entry.worn)
        self._alike[key].remove(number)
        if not self._alike[key]:
            del self._alike[key]


_MOST = 256
"""Entries."""

_TRIED = 32
"""Entries with the same first tokens that a row is compared with, the latest first to stay."""


def _key(ids: np.ndarray, worn: Hashable) -> tuple[Hashable, bytes]:
    return worn, ids[:LEAST].tobytes()


def copied(layers: Sequence[Tensor], slot: int, start: int, end: int) -> list[Tensor]:
    """Copy places ``start`` to ``end`` of a slot of every layer, each (slots, 2G, C, D)."""
    return [each[slot, :, start:end].clone() for each in layers]


def size_of(layers: Sequence[Tensor], tokens: int) -> int:
    """Return how many bytes so many places of a slot take, in layers (slots, 2G, C, D)."""
    each = layers[0]
    return len(layers) * each.shape[1] * tokens * each.shape[3] * each.element_size()
