"""The one decode generator.

It yields columns of tokens: a stream is a column of one row, a batch of many; a text is a join
and cancelling is closing. Rows of different lengths run side by side, each in a slot of the
cache at its own positions; finished rows leave at once and waiting ones take their place. Where
memory runs short, the latest rows go back to wait and fewer run from then on.

Shapes: B running rows, T tokens of one prompt, V vocabulary.
"""

from __future__ import annotations

import logging
from collections.abc import Generator, Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext

import torch
from torch import Tensor

from ..errors import OutOfMemoryError
from ..models.causal import CausalModel
from .cache import CacheFullError, KVCache
from .entrance import Dress, Entrance, Plain
from .graphs import Graphs, Recorder, recorder
from .memory import cache_limit, ran_out, readable
from .past import Front
from .reuse import Kept
from .rows import Row as Row, pick

log = logging.getLogger(__name__)

Column = tuple[Row, ...]
"""The rows that got a token, or ended, in this step; each carries its own state."""


def columns(
    model: CausalModel,
    rows: Iterable[Row | None],
    *,
    slots: int = 1,
    dress: Dress | None = None,
    kept: Kept | None = None,
    lock: AbstractContextManager[object] | None = None,
    limit: int | None = None,
    record: Recorder | None = None,
) -> Generator[Column, None, None]:
    """Decode rows, at most ``slots`` at a time; yield once per step.

    Rows are drawn from ``rows`` only when a slot is free; None among them says that there are
    none for now, and the step goes on without. A column may be empty while a long prompt comes
    in. A row that fails carries its error; the others go on. Closing the generator cancels all.

    :param dress: puts on what each row wears, such as adapters.
    :param kept: what earlier rows left in the cache, for those that begin alike.
    :param lock: held while the model runs; for models that several threads ask.
    :param limit: most bytes that keys and values may take, beside what the devices have free.
    :param record: records steps of fixed shapes; None: as CUDA graphs, on a CUDA device.
    """
    dress, lock = dress or Plain(), lock or nullcontext()
    with lock, torch.inference_mode(), dress(()):
        prefix = model.prefix() if model.prefix is not None else None
        likes = model.likes
        free = cache_limit([each.device for each in likes])
        limit = free if limit is None else min(limit, free)
        cache = KVCache(model.config, slots, likes=likes, prefix=prefix, limit=limit)
    entrance = Entrance(model, cache, iter(rows), dress, kept)
    decoder = _Decoder(model, cache, entrance, dress, record)
    try:
        while True:
            with lock, torch.inference_mode():
                column = decoder.advance()
            if column is None:
                return
            yield column
    except GeneratorExit:
        # Only a closed answer leaves what it had: after an error it may be wrong.
        with lock, torch.inference_mode():
            decoder.leave()
        raise
    finally:
        with lock, torch.inference_mode():
            decoder.close()


class _Decoder:
    """The rows that run, and what moves them on."""

    def __init__(
        self,
        model: CausalModel,
        cache: KVCache,
        entrance: Entrance,
        dress: Dress,
        record: Recorder | None,
    ) -> None:
        self.model, self.cache, self.entrance, self.dress = model, cache, entrance, dress
        if record is None and all(each.is_cuda for each in cache.layers) and not model.stack.turns:
            record = recorder()
        self._graphs = Graphs(model, cache, record) if record is not None else None
        self.running: list[Row] = []

    def advance(self) -> Column | None:
        """Give every row its next token and bring new ones in; None if all is done."""
        running = self.running
        self._release()
        scores = self._stepped()
        scores += self.entrance.join(running)
        with _one_thread(running, self.model.like):
            at = 0
            for each in scores:
                pick(running[at : at + len(each)], each)
                at += len(each)
        ended = self.entrance.ended()
        if not running and not ended and self.entrance.over:
            return None
        return (*running, *ended)

    def leave(self) -> None:
        """Let all rows go, and what they have stay known."""
        while self.running:
            self.entrance.leave(self.running[-1], len(self.running) - 1)
            self.running.pop()

    def close(self) -> None:
        """Forget what is not over."""
        for row in self.running:
            self.dress.end(row)
        self.entrance.close()

    def _release(self) -> None:
        """Free the slots of rows that ended."""
        for slot in range(len(self.running) - 1, -1, -1):
            if self.running[slot].finish is not None:
                self.entrance.leave(self.running[slot], slot)
                self._remove(slot)

    def _remove(self, slot: int) -> None:
        """Take a row out; slot numbers stay the order of the running rows."""
        last = self.running.pop()
        if slot < len(self.running):
            self.cache.move(len(self.running), slot, last.length)
            self.running[slot] = last
        self.entrance.closed(len(self.running))

    def _stepped(self) -> list[Tensor]:
        """Return the next scores (B, V) of all rows that there is memory for, if any."""
        running = self.running
        while running:
            try:
                # One more slot may be in use than rows run: a prompt that comes in in pieces.
                self.cache.reserve(self.cache.used, max(row.length for row in running) + 1)
                with _one_thread(running, self.model.like), self.dress(running):
                    return [self._scores()]
            except (RuntimeError, MemoryError) as error:
                if not ran_out(error):
                    raise
                full = isinstance(error, CacheFullError)
            self._shrink(full=full)  # out here, where the error holds no memory any more
        return []

    def _scores(self) -> Tensor:
        """Return the next scores (B, V) of all rows."""
        running = self.running
        known = None
        if self._graphs is not None and self.dress.bare(running):
            known = self._graphs.step(running)
        return _step(self.model, self.cache, running) if known is None else known

    def _shrink(self, *, full: bool) -> None:
        """Let fewer rows run: one less where the cache is full, else half of them."""
        if self.entrance.withdraw():
            return
        if len(self.running) == 1:
            self._end_early(self.running[0], full=full)
            return
        for _ in range(1 if full else len(self.running) // 2):
            # Who has the least loses the least.
            slot = min(range(len(self.running)), key=lambda each: self.running[each].length)
            self.entrance.give_way(self.running[slot])
            self._remove(slot)
        if not full:
            self.cache.slots = len(self.running)
            log.warning("memory ran out; %d rows run side by side from now on", self.cache.slots)

    def _end_early(self, row: Row, *, full: bool) -> None:
        tokens, size = row.length + 1, readable(self.cache.size_of(row.length + 1))
        if full:
            log.warning(
                "an answer was cut off: the keys and values of its %d tokens take %s, and there "
                "is no room for more",
                tokens,
                size,
            )
            row.finish = "length"
        else:
            row.fail(
                OutOfMemoryError(
                    f"memory ran out at a row of {tokens} tokens, running alone (its keys and "
                    f"values take {size}); shorten it, free memory or load the model in fewer bits"
                )
            )
        self.entrance.end(row, 0)
        self._remove(0)


def _step(model: CausalModel, cache: KVCache, running: list[Row]) -> Tensor:
    """Feed every row its last token; return the next scores (B, V)."""
    front = Front(cache, [row.length for row in running])
    device = front.places.device
    ids = torch.tensor([[row.new[-1]] for row in running], device=device)
    places = torch.tensor([row.place(row.length) for row in running], device=device)
    hidden = model.hidden(ids, places[..., None], past=front)
    return model.scores(hidden[:, -1])


@contextmanager
def _one_thread(running: list[Row], like: Tensor) -> Iterator[None]:
    """Keep torch to one thread for the small operations of a step over few rows.

    Its other threads gain nothing there, but go on spinning afterwards, in the way of the threads
    that multiply the matrices (a third of the speed, measured on two cores).
    """
    threads = torch.get_num_threads()
    if threads == 1 or len(running) > _FEW or like.device.type != "cpu":
        yield
        return
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


_FEW = 4
