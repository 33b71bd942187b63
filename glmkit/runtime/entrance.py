"""How rows come into the cache: prompts of like length together, what is known already taken over.

Shapes: B rows of a group, T new tokens of the longest of them, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from ..models.causal import CausalModel
from ..models.prefix import beside_prefix
from .cache import KVCache
from .past import Span
from .reuse import LEAST, Entry, Kept, copied, shared, size_of
from .rows import Row

PER_STEP = 2048
"""Prompt tokens, pads included, that join in one step while others wait for their next token."""

_TRIED = 8
"""Running rows that a new one is compared with: what many share, any of them has."""

_EVEN = 0.7
"""Prompts run together if the shortest has this share of the longest: the rest would be pads."""


class Dress(Protocol):
    """Puts on what rows wear, such as adapters."""

    def __call__(self, rows: Sequence[Row]) -> AbstractContextManager[None]:
        """Dress the model for the rows that run next; for no rows, while the cache is begun."""
        ...

    def begin(self, row: Row) -> Hashable:
        """Settle what a row wears to its end; return what tells it from rows that wear others."""
        ...

    def end(self, row: Row) -> None:
        """Take note that a row is over."""
        ...


class Plain:
    """The model as it is."""

    def __call__(self, rows: Sequence[Row]) -> AbstractContextManager[None]:
        """Change nothing."""
        return nullcontext()

    def begin(self, row: Row) -> Hashable:
        """Tell no rows apart."""
        return None

    def end(self, row: Row) -> None:
        """Need nothing."""


@dataclass(eq=False)
class _Waiting:
    """A row that was drawn and has no slot yet."""

    row: Row
    ids: np.ndarray
    worn: Hashable
    known: int = 0
    """Tokens whose keys and values are taken over."""
    source: int | Entry | None = None
    """From where: the slot of a running row, or an entry."""

    @property
    def left(self) -> int:
        """Tokens still to be computed."""
        return len(self.ids) - self.known


class Entrance:
    """Draws rows as slots come free, and prefills them."""

    def __init__(
        self,
        model: CausalModel,
        cache: KVCache,
        rows: Iterator[Row],
        dress: Dress,
        kept: Kept | None = None,
    ) -> None:
        self.model, self.cache, self.dress = model, cache, dress
        self.kept = kept if model.REUSABLE else None
        self._rows = rows
        self._ready: list[_Waiting] = []
        self._inside: dict[Row, _Waiting] = {}
        """What runs; in the order of the slots."""

    def join(self, running: list[Row]) -> list[Tensor]:
        """Bring rows in, as many as this step has room for; return their scores, each (B, V)."""
        self._inside = {row: self._inside[row] for row in running}  # in the order of the slots
        self._draw(self.cache.slots - len(running))
        room = PER_STEP
        scores: list[Tensor] = []
        while self._ready:
            group = self._group(room if running else max(room, self._ready[0].left))
            if not group:
                break
            room -= len(group) * max(each.left for each in group)
            try:
                scores.append(self._prefill(group))
            except BaseException:
                for each in group:
                    self.dress.end(each.row)
                raise
            running += [each.row for each in group]
        return scores

    def leave(self, row: Row, slot: int) -> None:
        """Let a row go, and keep what it has in its slot for rows that begin alike."""
        waiting = self._inside[row]
        length = len(row.prompt) + max(0, len(row.new) - 1)
        layers = self.cache.layers
        if self.kept is not None and self.kept.takes(length, size_of(layers, length)):
            ahead = self.cache.ahead
            kv = copied(layers, slot, ahead, ahead + length)
            self.kept.add([*row.prompt, *row.new][:length], waiting.worn, kv)
        self.dress.end(row)

    def close(self) -> None:
        """Let the rows go that were drawn and never ran."""
        while self._ready:
            self.dress.end(self._ready.pop().row)

    def _draw(self, free: int) -> None:
        while len(self._ready) < free:
            row = next(self._rows, None)
            if row is None:
                return
            ids = np.asarray(row.prompt, dtype=np.int64)
            self._ready.append(_Waiting(row, ids, self.dress.begin(row)))

    def _group(self, room: int) -> list[_Waiting]:
        """Take rows out that run together; none if the first alone has no room."""
        for each in self._ready:
            self._look_up(each)
        first = self._ready[0]
        if first.left > room:
            return []
        if any(self._alike(first, each) for each in self._ready[1:]):
            return [self._ready.pop(0)]  # the others begin with what it leaves
        alike = [each for each in self._ready if each.known == first.known]
        alike.sort(key=lambda each: -each.left)
        start = next(at for at, each in enumerate(alike) if each.left * _EVEN <= first.left)
        longest = alike[start].left
        group = [each for each in alike[start:] if each.left >= longest * _EVEN]
        group = group[: max(1, room // longest)]
        group = group if first in group else [first, *group[:-1]]
        self._ready = [each for each in self._ready if each not in group]
        return group

    def _alike(self, first: _Waiting, other: _Waiting) -> bool:
        """Tell whether a row had better wait for what the first will leave in its slot."""
        if not self.model.REUSABLE or first.worn != other.worn:
            return False
        return _useful(shared(first.ids, other.ids), other.ids) > other.known

    def _look_up(self, waiting: _Waiting) -> None:
        """Find what is known of a row's beginning."""
        waiting.known, waiting.source = 0, None
        if not self.model.REUSABLE:
            return
        if self.kept is not None:
            length, entry = self.kept.find(waiting.ids, waiting.worn)
            waiting.known, waiting.source = _useful(length, waiting.ids), entry
        tried = 0
        for slot, each in enumerate(self._inside.values()):
            if each.worn == waiting.worn and each.ids[0] == waiting.ids[0] and tried < _TRIED:
                tried += 1
                length = _useful(shared(each.ids, waiting.ids), waiting.ids)
                if length > waiting.known:
                    waiting.known, waiting.source = length, slot

    def _prefill(self, group: list[_Waiting]) -> Tensor:
        """Run the prompts of a group; return the scores (B, V) behind their last tokens."""
        cache = self.cache
        cache.reserve(max(len(each.ids) + each.row.max_tokens for each in group))
        slots = [cache.open() for _ in group]
        for slot, each in zip(slots, group, strict=True):
            self._take_over(slot, each)
            each.row.place = self.model.placer(each.row.prompt)
        start, tokens = group[0].known, max(each.left for each in group)
        ids = torch.zeros(len(group), tokens, dtype=torch.long)
        for at, each in enumerate(group):
            ids[at, : each.left] = torch.from_numpy(each.ids[start:])
        ids = ids.to(cache.layers[0].device)
        positions, mask = self._placed(ids, start)
        span = Span(cache, slots[0], start, tokens, rows=len(group))
        with self.dress([each.row for each in group]):
            hidden = self.model.hidden(
                ids, positions, mask=mask, causal=mask is None and tokens > 1, past=span
            )
            last = torch.tensor([each.left - 1 for each in group], device=ids.device)
            scores = self.model.scores(hidden[torch.arange(len(group), device=ids.device), last])
        self._inside.update((each.row, each) for each in group)
        return scores

    def _placed(self, ids: Tensor, start: int) -> tuple[Tensor, Tensor | None]:
        """Return positions and mask of new tokens behind ``start`` known ones."""
        ahead = self.cache.ahead
        if not start:
            positions, mask = self.model.start(ids)
            return positions, beside_prefix(mask, ahead, ids) if ahead else mask
        rows, tokens = ids.shape
        positions = torch.arange(start, start + tokens, device=ids.device).expand(rows, -1)
        before = ahead + start
        mask = torch.ones(tokens, before + tokens, dtype=torch.bool, device=ids.device)
        return positions, mask.tril(before)[None, None]

    def _take_over(self, slot: int, waiting: _Waiting) -> None:
        source, known, ahead = waiting.source, waiting.known, self.cache.ahead
        for layer, held in enumerate(self.cache.layers):
            if isinstance(source, Entry):
                held[slot, :, ahead : ahead + known] = source.kv[layer][:, :known]
            elif source is not None:
                held[slot, :, ahead : ahead + known] = held[source, :, ahead : ahead + known]


def _useful(length: int, ids: np.ndarray) -> int:
    """Return how many tokens of a common beginning are taken over.

    The last token is always computed, for its scores; and whole blocks only, so that rows which
    happen to agree in a word more than others still run together with them.
    """
    return min(length, len(ids) - 1) // LEAST * LEAST
