"""The one decode generator.

It yields columns of tokens: a stream is a column of one row, a batch of many; a text is a join
and cancelling is closing. Rows of different lengths run side by side, each in a slot of the
cache at its own positions; finished rows leave at once and waiting ones take their place.

Shapes: B running rows, T tokens of one prompt, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field
from typing import Literal

import torch
from torch import Tensor

from ..errors import CheckpointError
from ..models.causal import CausalModel, Placer
from ..models.prefix import beside_prefix
from .cache import Front, KVCache, Span
from .sampling import Sampler, greedy


@dataclass(eq=False)
class Row:
    """One answer in the making."""

    prompt: Sequence[int]
    """Token ids, one at least."""
    max_tokens: int
    stop_ids: frozenset[int] = frozenset()
    pick: Sampler = greedy
    new: list[int] = field(default_factory=list)
    """The tokens so far; a stop token is never among them."""
    finish: Literal["stop", "length", "cancelled"] | None = None
    """Why the row ended. Whoever reads the columns may set it, and the row leaves."""
    place: Placer = int
    """Places the tokens behind the prompt; the model decides."""
    adapter: str | Mapping[str, float] | None = None
    """The adapters that the row wears; see :class:`~glmkit.types.GenerationOptions`."""

    @property
    def length(self) -> int:
        """How many of the row's tokens the cache holds, once a column was picked."""
        return len(self.prompt) + len(self.new) - 1

    def take(self, token: int) -> None:
        """Append a picked token, or end."""
        if token in self.stop_ids:
            self.finish = "stop"
            return
        self.new.append(token)
        if len(self.new) >= self.max_tokens:
            self.finish = "length"


Column = tuple[Row, ...]
"""The rows that got a token, or ended, in this step; each carries its own state."""

Dress = Callable[[Sequence[Row]], AbstractContextManager[None]]
"""Dresses the model for the rows that run next; for no rows, while the cache is begun."""


def _plain(rows: Sequence[Row]) -> AbstractContextManager[None]:
    return nullcontext()


def columns(
    model: CausalModel, rows: Iterable[Row], *, slots: int = 1, dress: Dress = _plain
) -> Generator[Column, None, None]:
    """Decode rows, at most ``slots`` at a time; yield once per step.

    Rows are drawn from ``rows`` only when a slot is free. Closing the generator cancels all.

    :param dress: puts on what each row wears, such as adapters.
    :raises CheckpointError: if the model's scores are not numbers.
    """
    like = model.like
    with torch.inference_mode(), dress(()):
        prefix = model.prefix() if model.prefix is not None else None
    cache = KVCache(model.config, slots, like=like, prefix=prefix)
    waiting = iter(rows)
    running: list[Row] = []
    while True:
        with torch.inference_mode():
            _release(cache, running)
            with _one_thread(running, like), dress(running):
                scores = [_step(model, cache, running)] if running else []
            for row in _joining(waiting, slots - len(running)):
                with dress((row,)):
                    scores.append(_prefill(model, cache, row))
                running.append(row)
            if not running:
                return
            with _one_thread(running, like):
                _pick(running, torch.cat(scores))
        yield tuple(running)


def _joining(waiting: Iterator[Row], free: int) -> Iterator[Row]:
    for _ in range(free):
        row = next(waiting, None)
        if row is None:
            return
        yield row


def _prefill(model: CausalModel, cache: KVCache, row: Row) -> Tensor:
    """Run a prompt into a fresh slot; return the scores (1, V) behind its last token."""
    cache.reserve(len(row.prompt) + row.max_tokens)
    span = Span(cache, cache.open(), 0, len(row.prompt))
    row.place = model.placer(row.prompt)
    ids = torch.tensor([list(row.prompt)], device=cache.layers[0].device)
    positions, mask = model.start(ids)
    if cache.ahead:
        mask = beside_prefix(mask, cache.ahead, ids)
    causal = mask is None and ids.shape[1] > 1
    hidden = model.hidden(ids, positions, mask=mask, causal=causal, past=span)
    return model.scores(hidden[:, -1])


def _step(model: CausalModel, cache: KVCache, running: list[Row]) -> Tensor:
    """Feed every row its last token; return the next scores (B, V)."""
    front = Front(cache, [row.length for row in running])
    device = front.places.device
    ids = torch.tensor([[row.new[-1]] for row in running], device=device)
    places = torch.tensor([row.place(row.length) for row in running], device=device)
    hidden = model.hidden(ids, places[..., None], mask=front.mask(), past=front)
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


def _pick(running: list[Row], scores: Tensor) -> None:
    """Let every row pick from its scores, (B, V)."""
    best, tokens = scores.max(-1)
    if not bool(torch.isfinite(best).all()):
        raise CheckpointError(
            "the model's scores are not numbers (NaN or infinite): its weights are damaged, or "
            "they overflow in half precision; fetch them again or load with dtype='float32'"
        )
    for row, token, own in zip(running, tokens.tolist(), scores, strict=True):
        row.take(token if row.pick is greedy else row.pick(own))


def _release(cache: KVCache, running: list[Row]) -> None:
    """Free the slots of rows that ended; slot numbers stay the order of ``running``."""
    for slot in range(len(running) - 1, -1, -1):
        if running[slot].finish is not None:
            last = running.pop()
            cache.free(slot, last.length)
            if slot < len(running):
                running[slot] = last
