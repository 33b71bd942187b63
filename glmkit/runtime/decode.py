"""The one decode generator.

It yields columns of tokens: a stream is a column of one row, a batch of many; a text is a join
and cancelling is closing. Rows of different lengths run side by side, each in a slot of the
cache at its own positions; finished rows leave at once and waiting ones take their place.

Shapes: B running rows, T tokens of one prompt, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Generator, Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext

import torch
from torch import Tensor

from ..errors import CheckpointError
from ..models.causal import CausalModel
from .cache import KVCache
from .entrance import Dress, Entrance, Plain
from .past import Front
from .reuse import Kept
from .rows import Row as Row
from .sampling import greedy

Column = tuple[Row, ...]
"""The rows that got a token, or ended, in this step; each carries its own state."""


def columns(
    model: CausalModel,
    rows: Iterable[Row],
    *,
    slots: int = 1,
    dress: Dress | None = None,
    kept: Kept | None = None,
    lock: AbstractContextManager[object] | None = None,
) -> Generator[Column, None, None]:
    """Decode rows, at most ``slots`` at a time; yield once per step.

    Rows are drawn from ``rows`` only when a slot is free. Closing the generator cancels all.

    :param dress: puts on what each row wears, such as adapters.
    :param kept: what earlier rows left in the cache, for those that begin alike.
    :param lock: held while the model runs; for models that several threads ask.
    :raises CheckpointError: if the model's scores are not numbers.
    """
    like = model.like
    dress, lock = dress or Plain(), lock or nullcontext()
    with lock, torch.inference_mode(), dress(()):
        prefix = model.prefix() if model.prefix is not None else None
    cache = KVCache(model.config, slots, like=like, prefix=prefix)
    entrance = Entrance(model, cache, iter(rows), dress, kept)
    running: list[Row] = []
    try:
        while True:
            with lock, torch.inference_mode():
                _release(cache, running, entrance)
                with _one_thread(running, like), dress(running):
                    scores = [_step(model, cache, running)] if running else []
                scores += entrance.join(running)
                if not running:
                    return
                with _one_thread(running, like):
                    _pick(running, torch.cat(scores))
            yield tuple(running)
    except GeneratorExit:
        # Only a closed answer leaves what it had: after an error it may be wrong.
        with lock:
            while running:
                entrance.leave(running[-1], len(running) - 1)
                running.pop()
        raise
    finally:
        for row in running:
            dress.end(row)
        entrance.close()


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


def _release(cache: KVCache, running: list[Row], entrance: Entrance) -> None:
    """Free the slots of rows that ended; slot numbers stay the order of ``running``."""
    for slot in range(len(running) - 1, -1, -1):
        if running[slot].finish is not None:
            entrance.leave(running[slot], slot)
            last = running.pop()
            cache.free(slot, last.length)
            if slot < len(running):
                running[slot] = last
