"""Steps over shapes that stay as they are, recorded once on a CUDA device and then replayed.

A step of a language model is hundreds of small launches, each of which takes the processor longer
than the card; a replayed graph is one. It wants the same shapes and the same addresses each time:
rows and the tokens that they see are rounded up, and what is beyond them is masked.

Shapes: B rows of a step, S places of a slot that are looked at, V vocabulary.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from ..models.attention import Past
from ..models.causal import CausalModel
from .cache import KVCache
from .rows import Row

log = logging.getLogger(__name__)

Replay = Callable[[], None]
Recorder = Callable[[Callable[[], None]], Replay]
"""Runs a function, and returns what does again exactly what it did, on the same tensors."""

_WARM = 3
"""Steps of a shape before it is recorded: recording costs as much as a few of them."""


class FixedStep:
    """One step over a fixed number of rows, which see a fixed number of places.

    :param rows: B; the cache has memory for that many slots.
    :param places: S, at most the capacity of a slot.
    """

    def __init__(self, model: CausalModel, cache: KVCache, rows: int, places: int) -> None:
        self.model = model
        device = cache.layers[0].device
        self._past = _Fixed(cache, rows, places)
        self._ids = torch.zeros(rows, 1, dtype=torch.long, device=device)
        self._positions: Tensor | None = None
        self.scores: Tensor | None = None
        """(B, V), of rows that are not there too."""

    def load(self, running: Sequence[Row]) -> None:
        """Put in what the rows run with: their last tokens and where these go."""
        places = [[row.new[-1], self._past.cache.ahead + row.length] for row in running]
        unused = [0, self._past.cache.capacity - 1]  # written where nobody looks yet
        both = torch.tensor(places + [unused] * (len(self._ids) - len(running)))
        self._ids.copy_(both[:, :1])
        self._past.places.copy_(both[:, 1])
        at = torch.tensor([row.place(row.length) for row in running])[..., None]
        if self._positions is None:
            self._positions = at.new_zeros((len(self._ids), *at.shape[1:])).to(self._ids.device)
        self._positions[: len(running)].copy_(at)

    def run(self) -> None:
        """Work the scores out."""
        if self._positions is None:
            raise RuntimeError("nothing was loaded")
        hidden = self.model.hidden(self._ids, self._positions, past=self._past)
        self.scores = self.model.scores(hidden[:, -1])


class _Fixed(Past):
    """One new token for each of the slots 0..B-1, at places that a tensor holds."""

    def __init__(self, cache: KVCache, rows: int, places: int) -> None:
        self.cache, self.rows, self.seen = cache, rows, places
        device = cache.layers[0].device
        self.slots = torch.arange(rows, device=device)
        self.places = torch.zeros(rows, dtype=torch.long, device=device)

    def extend(self, layer: int, kv: Tensor) -> tuple[Tensor, Tensor]:
        """Store (B, 1, 2G, D), each row at its own place; return (B, G, S, D) twice."""
        held = self.cache.layers[layer].narrow(0, 0, self.rows)
        held[self.slots, :, self.places] = kv[:, 0]
        keys, values = held.narrow(2, 0, self.seen).chunk(2, dim=1)
        return keys, values

    def sees(self, like: Tensor, causal: bool) -> tuple[Tensor | None, bool]:
        """Return which places each row sees: those up to its own."""
        at = torch.arange(self.seen, device=like.device)
        return (at <= self.places[:, None])[:, None, None, :], False


class Graphs:
    """Recorded steps, by their shapes; all are forgotten when the cache moves."""

    def __init__(self, model: CausalModel, cache: KVCache, record: Recorder) -> None:
        self.model, self.cache, self._record = model, cache, record
        self._steps: dict[tuple[int, int], tuple[FixedStep, Replay]] = {}
        self._met: dict[tuple[int, int], int] = {}
        self._at: list[int] = []
        self._off = False

    def step(self, running: Sequence[Row]) -> Tensor | None:
        """Return the next scores (B, V) of the rows; None where nothing is recorded for them."""
        rows, places = shape = self._shape(running)
        tokens = places - self.cache.ahead
        if self._off or self._is_new(shape) or rows > self.cache.room(tokens):
            return None
        self.cache.reserve(rows, tokens)
        try:
            step, replay = self._recorded(shape, running)
        except RuntimeError as error:
            # What cannot be recorded still runs.
            log.warning("steps are not recorded as CUDA graphs: %s", str(error).splitlines()[0])
            self._off = True
            self._steps.clear()
            return None
        step.load(running)
        replay()
        return None if step.scores is None else step.scores[: len(running)]

    def _is_new(self, shape: tuple[int, int]) -> bool:
        self._met[shape] = self._met.get(shape, 0) + 1
        return self._met[shape] < _WARM

    def _recorded(self, shape: tuple[int, int], running: Sequence[Row]) -> tuple[FixedStep, Replay]:
        at = [each.data_ptr() for each in self.cache.layers]
        if at != self._at:
            self._steps.clear()
            self._at = at
        if shape not in self._steps:
            step = FixedStep(self.model, self.cache, *shape)
            step.load(running)
            self._steps[shape] = step, self._record(step.run)
        return self._steps[shape]

    def _shape(self, running: Sequence[Row]) -> tuple[int, int]:
        """Return rows and places, rounded up so that few shapes are met."""
        rows = len(running)
        rows = 1 << (rows - 1).bit_length() if rows <= _EIGHT else -(-rows // _EIGHT) * _EIGHT
        seen = self.cache.ahead + max(row.length for row in running) + 1
        power = max(_SHORTEST, 1 << (seen - 1).bit_length())
        seen = power * 3 // 4 if seen <= power * 3 // 4 else power
        most = self.cache.config.context_length + self.cache.ahead
        return min(rows, self.cache.slots), max(min(seen, most), 1)


_EIGHT = 8
_SHORTEST = 256


def recorder() -> Recorder:
    """Return what records CUDA graphs; all of them share one pool of memory."""
    pool = torch.cuda.graph_pool_handle()

    def record(run: Callable[[], None]) -> Replay:
        # Once without recording, on a stream of its own: libraries set themselves up first.
        side = torch.cuda.Stream()  # type: ignore[no-untyped-call]
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):
            run()
        torch.cuda.current_stream().wait_stream(side)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, pool=pool):
            run()
        return graph.replay

    return record
