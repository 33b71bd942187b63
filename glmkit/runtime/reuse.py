"""Keys and values that rows leave behind, for rows that begin as they did.

The next turn of a chat begins with all that was said before; the rows of a job with the same
instructions. What is alike is taken over instead of being computed again.

Shapes: L layers, G key/value heads, D head size, N tokens of an entry.
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from .pages import available_memory

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
        """Its size."""
        return sum(each.numel() * each.element_size() for each in self.kv)


class Kept:
    """The latest entries, up to a size.

    :param limit: bytes; the entries used longest ago leave first.
    """

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self._entries: list[Entry] = []

    def __len__(self) -> int:
        return len(self._entries)

    def find(self, ids: np.ndarray, worn: Hashable) -> tuple[int, Entry | None]:
        """Return how many tokens the best entry shares with ``ids``, and the entry."""
        best, found = 0, None
        for entry in self._entries:
            if entry.worn == worn:
                length = shared(entry.ids, ids)
                if length > best:
                    best, found = length, entry
        if found is not None:
            self._entries.remove(found)
            self._entries.append(found)
        return best, found

    def add(self, ids: Sequence[int], worn: Hashable, kv: list[Tensor]) -> None:
        """Keep a row; entries that it contains leave.

        :param kv: for each layer (2G, N, D), copied by the caller.
        """
        entry = Entry(np.asarray(ids, dtype=np.int64), worn, kv)
        if len(entry.ids) < LEAST or entry.bytes > self.limit:
            return
        self._entries = [
            each
            for each in self._entries
            if each.worn != worn or shared(each.ids, entry.ids) < len(each.ids)
        ]
        self._entries.append(entry)
        while sum(each.bytes for each in self._entries) > self.limit:
            self._entries.pop(0)

    def clear(self) -> None:
        """Forget everything: the model has changed."""
        self._entries.clear()


def memory_of(device: torch.device) -> int:
    """Return how many bytes of memory a device has free, or the machine, for processors."""
    if device.type == "cuda":
        return int(torch.cuda.mem_get_info(device)[0])
    return available_memory()


def copied(layers: Sequence[Tensor], slot: int, start: int, end: int) -> list[Tensor]:
    """Copy places ``start`` to ``end`` of a slot of every layer, each (slots, 2G, C, D)."""
    with torch.inference_mode():
        return [each[slot, :, start:end].clone() for each in layers]
