"""How rows come into the cache: prompts of like length together, long ones in pieces.

What is known already is taken over. Shapes: B rows of a group, T new tokens of the longest of
them, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from ..errors import GlmkitError, OutOfMemoryError
from ..models.causal import CausalModel
from ..models.prefix import beside_prefix
from .cache import KVCache
from .memory import ran_out, readable
from .past import Span
from .reuse import Entry, Kept, copied, size_of
from .rows import Row
from .waiting import Waiting, Waitlist, needs

PER_STEP = 2048
"""Prompt tokens, pads included, that join in one step."""

BESIDE = {"cpu": 256}
"""The same while other rows wait for their next token, by device; elsewhere :data:`PER_STEP`."""

_SCRAP = 32
"""Tokens: where a step has room for fewer, what comes in in pieces waits for the next one."""

_EVEN = {"cpu": 0.85}
"""How much alike in length prompts are that run together, by device: on a processor a pad costs as
much as a token, on a card another group costs more."""


class Dress(Protocol):
    """Puts on what rows wear, such as adapters."""

    def __call__(self, rows: Sequence[Row]) -> AbstractContextManager[None]:
        """Dress the model for the rows that run next; for no rows, while the cache is begun."""
        ...

    def bare(self, rows: Sequence[Row]) -> bool:
        """Tell whether none of the rows wears anything."""
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

    def bare(self, rows: Sequence[Row]) -> bool:
        """Nothing is worn."""
        return True

    def begin(self, row: Row) -> Hashable:
        """Tell no rows apart."""
        return None

    def end(self, row: Row) -> None:
        """Need nothing."""


class Entrance:
    """Draws rows as slots come free, and prefills them."""

    def __init__(
        self,
        model: CausalModel,
        cache: KVCache,
        rows: Iterator[Row | None],
        dress: Dress,
        kept: Kept | None = None,
    ) -> None:
        self.model, self.cache, self.dress = model, cache, dress
        self.kept = kept if model.REUSABLE else None
        even = _EVEN.get(cache.layers[0].device.type, 0.6)
        self._list = Waitlist(rows, reusable=model.REUSABLE, kept=kept, even=even)
        self._inside: dict[Row, Waiting] = {}
        """What runs; in the order of the slots."""
        self._entering: Waiting | None = None
        """A row whose prompt comes in in pieces; its slot is the one behind the running rows."""
        self._per_step = PER_STEP
        self._ended: list[Row] = []

    @property
    def over(self) -> bool:
        """Whether nothing waits, and nothing can be drawn any more."""
        return self._list.over and not self._list and self._entering is None

    def ended(self) -> list[Row]:
        """Return the rows that ended without ever running, since the last call."""
        found, self._ended = self._ended, []
        return found

    def join(self, running: list[Row]) -> list[Tensor]:
        """Bring rows in, as many as this step has room for; return their scores, each (B, V)."""
        self._inside = {row: self._inside[row] for row in running}  # in the order of the slots
        self._draw(len(running))
        room = self._per_step
        if running:
            room = min(room, BESIDE.get(self.cache.layers[0].device.type, PER_STEP))
        scores: list[Tensor] = []
        while room >= min(_SCRAP, self._per_step) and (self._entering or self._list):
            group = [self._entering] if self._entering else self._admitted(running, room)
            tokens = self._piece(group, room) if group else 0
            if not tokens:
                break
            found = self._tried(group, tokens, running)
            room -= len(group) * tokens
            if found is not None:
                scores.append(found)
        return scores

    def leave(self, row: Row, slot: int) -> None:
        """Let a row go, and keep what it has in its slot for rows that begin alike."""
        waiting = self._inside[row]
        length = len(row.prompt) + max(0, len(row.new) - 1)
        layers = self.cache.layers
        if row.error is not None:
            self.cache.wipe(slot)
        elif self.kept is not None and self.kept.takes(length, size_of(layers, length)):
            self._keep(row, waiting.worn, slot, length)
        self.dress.end(row)

    def _keep(self, row: Row, worn: Hashable, slot: int, length: int) -> None:
        start = self.cache.ahead
        try:
            kv = copied(self.cache.layers, slot, start, start + length)
        except (RuntimeError, MemoryError) as error:
            if not ran_out(error):
                raise
            return  # it would only have saved time
        if self.kept is not None:
            self.kept.add([*row.prompt, *row.new][:length], worn, kv)

    def end(self, row: Row, slot: int) -> None:
        """Let a row go that ended without a token in this step."""
        self.leave(row, slot)
        self._ended.append(row)

    def give_way(self, row: Row) -> None:
        """Take a running row back to wait; what it has is computed again when there is room."""
        worn = self._inside.pop(row).worn
        ids = np.asarray([*row.prompt, *row.new], dtype=np.int64)
        self._list.ready.insert(0, Waiting(row, ids, worn))

    def withdraw(self) -> bool:
        """Take the row that is coming in in pieces back to wait; tell whether there was one."""
        if self._entering is None:
            return False
        self._back([self._entering], self.cache.used - 1)
        return True

    def closed(self, slot: int) -> None:
        """Close the slot behind the running rows, of which the last was at ``slot``."""
        if self._entering is not None:
            self.cache.move(slot + 1, slot, self._entering.known)
        self.cache.close()

    def close(self) -> None:
        """Let the rows go that were drawn and never ran."""
        self.withdraw()
        while self._list.ready:
            self.dress.end(self._list.ready.pop().row)

    def _draw(self, running: int) -> None:
        self._sweep()
        entering = self._entering is not None
        while len(self._list.ready) < self.cache.slots - running - entering:
            row = self._list.draw()
            if row is None:
                return
            try:
                worn = self.dress.begin(row)
            except GlmkitError as error:
                row.fail(error)
                self._ended.append(row)
                continue
            self._list.ready.append(Waiting(row, np.asarray(row.prompt, dtype=np.int64), worn))

    def _sweep(self) -> None:
        """Forget rows that were cancelled before they ran."""
        if self._entering is not None and self._entering.row.finish is not None:
            self.withdraw()
        for each in [each for each in self._list.ready if each.row.finish is not None]:
            self._list.take([each])
            self._end(each)

    def _end(self, waiting: Waiting) -> None:
        self.dress.end(waiting.row)
        self._ended.append(waiting.row)

    def _admitted(self, running: list[Row], room: int) -> list[Waiting]:
        """Take a group out of those that wait, as far as the cache has room for it."""
        while self._list:
            group = self._list.group(self._inside)
            most = self._most(group, running)
            if most > 0:
                whole = self._list.cut(group, min(most, max(1, room // group[0].left)))
                self._list.take(whole)
                return whole
            if running:
                return []
            self._refuse(self._list.ready[0])
        return []

    def _most(self, group: list[Waiting], running: list[Row]) -> int:
        """Return how many more rows the cache has room for, if all get some tokens more."""
        held = max((needs(row.length + 1, row) for row in running), default=0)
        free = self.cache.room(max(held, *(each.needs for each in group))) - len(running)
        if free < 1 and not running:
            # Alone, it may come in with less than it may need in the end.
            return min(1, self.cache.room(len(self._list.ready[0].ids) + 1))
        return free

    def _refuse(self, waiting: Waiting) -> None:
        """End a row that can never run."""
        tokens, cache = len(waiting.ids), self.cache
        room = f"there is room for {readable(cache.limit)}" if cache.limit else "memory ran out"
        waiting.row.fail(
            OutOfMemoryError(
                f"a row of {tokens} tokens needs {readable(cache.size_of(tokens + 1))} for its "
                f"keys and values, and {room}; shorten it, free memory or load the model in "
                "fewer bits"
            )
        )
        self._list.take([waiting])
        self._end(waiting)

    def _piece(self, group: list[Waiting], room: int) -> int:
        """Return how many tokens of each row of a group come in now."""
        longest = max(each.left for each in group)
        if longest <= room or not self.model.REUSABLE:
            return longest
        return room

    def _tried(self, group: list[Waiting], tokens: int, running: list[Row]) -> Tensor | None:
        """Let tokens in; where memory does not suffice, fewer come in from now on."""
        opened = self._entering is not None
        try:
            if not opened:
                self._open(group, running)
                opened = True
            return self._let_in(group, tokens, running)
        except BaseException as error:
            self._back(group, len(running))
            if not ran_out(error):
                raise
        if opened:
            self._slow_down(group, tokens, running)
        else:
            self._narrow(group, running)
        return None

    def _narrow(self, group: list[Waiting], running: list[Row]) -> None:
        """Let fewer rows run: there was no memory for the slots of a group."""
        if len(group) > 1 or running:
            self.cache.slots = len(running) + len(group) - max(1, len(group) // 2)
        else:
            self._refuse(group[0])

    def _slow_down(self, group: list[Waiting], tokens: int, running: list[Row]) -> None:
        """Let fewer tokens in at a time, or fewer rows, or give the row up that is too much."""
        if len(group) > 1 or (tokens > 1 and self.model.REUSABLE):
            self._per_step = max(1, min(self._per_step, len(group) * tokens) // 2)
        elif running:
            self.cache.slots = len(running)
        else:
            self._refuse(group[0])

    def _back(self, group: list[Waiting], running: int) -> None:
        """Take back what did not come in."""
        self._entering = None
        for slot in range(running, self.cache.used):
            self.cache.wipe(slot)
        self.cache.used = running
        for each in group:
            self._inside.pop(each.row, None)
        self._list.ready[:0] = group

    def _let_in(self, group: list[Waiting], tokens: int, running: list[Row]) -> Tensor | None:
        """Run so many tokens of each row; return the scores (B, V), None if more is to come."""
        whole = all(each.left <= tokens for each in group)
        self._entering = None if whole else group[0]
        scores = self._run(group, tokens, len(running), whole=whole)
        if whole:
            running += [each.row for each in group]
            self._inside.update((each.row, each) for each in group)
        else:
            group[0].known += tokens
        return scores

    def _open(self, group: list[Waiting], running: list[Row]) -> None:
        cache = self.cache
        held = max((row.length + 1 for row in running), default=0)
        tokens = max(held, *(each.needs for each in group))
        rows = len(running) + len(group)
        if rows > cache.room(tokens):
            tokens = max(held, *(len(each.ids) + 1 for each in group))
        cache.reserve(rows, tokens)
        for each in group:
            self._take_over(cache.open(), each)
            each.row.place = self.model.placer(each.row.prompt)

    def _run(self, group: list[Waiting], tokens: int, slot: int, *, whole: bool) -> Tensor | None:
        start = group[0].known
        ids = torch.zeros(len(group), tokens, dtype=torch.long)
        for at, each in enumerate(group):
            piece = each.ids[start : start + tokens]
            ids[at, : len(piece)] = torch.from_numpy(piece)
        ids = ids.to(self.model.like.device)
        positions, mask = self._placed(ids, start)
        span = Span(self.cache, slot, start, tokens, rows=len(group))
        with self.dress([each.row for each in group]):
            hidden = self.model.hidden(ids, positions, mask=mask, past=span)
            if not whole:
                return None
            last = torch.tensor([each.left - 1 for each in group], device=hidden.device)
            rows = torch.arange(len(group), device=hidden.device)
            return self.model.scores(hidden[rows, last])

    def _placed(self, ids: Tensor, start: int) -> tuple[Tensor, Tensor | None]:
        """Return positions and mask of new tokens behind ``start`` known ones.

        Without a mask each token sees what is before it, as the cache knows.
        """
        if not start:
            positions, mask = self.model.start(ids)
            beside = mask is not None and self.cache.ahead
            return positions, beside_prefix(mask, self.cache.ahead, ids) if beside else mask
        rows, tokens = ids.shape
        positions = torch.arange(start, start + tokens, device=ids.device)
        return positions.expand(rows, -1), None

    def _take_over(self, slot: int, waiting: Waiting) -> None:
        source, known, ahead = waiting.source, waiting.known, self.cache.ahead
        for layer, held in enumerate(self.cache.layers):
            if isinstance(source, Entry):
                held[slot, :, ahead : ahead + known] = source.kv[layer][:, :known]
            elif source is not None:
                held[slot, :, ahead : ahead + known] = held[source, :, ahead : ahead + known]
