"""What each step learns: pictures as the net sees them, with noise that the step's number decides.

Letters: B pictures of a batch, V variants of a picture (squares, mirrored or not), C channels and
h x w of a latent picture.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

THING, CLASS = 0, 1
"""What a picture shows; also the rows of prompts."""


@dataclass(frozen=True)
class Batch:
    """Pictures, the noise that is added to each, and how much of it."""

    clean: Tensor
    """(B, C, h, w)"""
    noise: Tensor
    """(B, C, h, w)"""
    times: Tensor
    """int64 (B,), steps of the scheduler."""
    shows: Tensor
    """int64 (B,), :data:`THING` or :data:`CLASS`."""

    def to(self, device: torch.device) -> Batch:
        """Return the same on another device."""
        parts = (self.clean, self.noise, self.times, self.shows)
        return Batch(*(each.to(device) for each in parts))


class Row(NamedTuple):
    """One picture of a batch."""

    clean: Tensor
    noise: Tensor
    time: int


@dataclass(frozen=True)
class Feed:
    """Batches of photographs, with as many pictures of the class beside where there are any.

    Every row draws its variant, its noise and its time by its own number: how rows are put
    together, and where a run was resumed, changes nothing.
    """

    things: Sequence[Tensor]
    """For each picture the means and spreads of its variants (V, 2, C, h, w)."""
    classes: Sequence[Tensor]
    """The same of the class; empty: nothing of it is learnt."""
    batch_size: int
    accumulation: int
    times: int
    """Steps of the scheduler."""
    seed: int

    def steps(self, epoch: int = 0) -> int:
        """Return the steps in which all photographs are seen."""
        return math.ceil(len(self.things) / self._rows)

    def batches(self, epoch: int, step: int, rank: int) -> Sequence[Batch]:
        """Return the passes of a step."""
        first = (epoch * self.steps() + step) * self._rows
        starts = range(first, first + self._rows, self.batch_size)
        return [self._batch(range(at, at + self.batch_size)) for at in starts]

    def weight(self, epoch: int, step: int) -> float:
        """Return how many photographs a step has."""
        return self._rows

    def tokens(self, epoch: int, step: int) -> int:
        """Return 0: there are none."""
        return 0

    @property
    def _rows(self) -> int:
        return self.batch_size * self.accumulation

    def _batch(self, numbers: Sequence[int]) -> Batch:
        shown = [THING] * len(numbers) + ([CLASS] * len(numbers) if self.classes else [])
        rows = [self._row(each, THING) for each in numbers]
        rows += [self._row(each, CLASS) for each in numbers if self.classes]
        return together(rows, shown)

    def _row(self, number: int, shows: int) -> Row:
        pictures = self.classes if shows == CLASS else self.things
        turn, at = divmod(number, len(pictures))
        order = torch.randperm(len(pictures), generator=random(self.seed, shows, "order", turn))
        own = random(self.seed, shows, "row", number)
        variants = pictures[int(order[at])]
        chosen = variants[int(torch.randint(len(variants), (), generator=own))]
        time = int(torch.randint(self.times, (), generator=own))
        return noised(chosen, time, own)


def noised(moments: Tensor, time: int, own: torch.Generator) -> Row:
    """Draw a latent picture and the noise for it.

    :param moments: mean and spread (2, C, h, w).
    """
    mean, spread = moments
    clean = mean + spread * torch.randn(mean.shape, generator=own)
    return Row(clean, torch.randn(mean.shape, generator=own), time)


def together(rows: Sequence[Row], shown: Sequence[int]) -> Batch:
    """Put rows into a batch."""
    return Batch(
        torch.stack([each.clean for each in rows]),
        torch.stack([each.noise for each in rows]),
        torch.tensor([each.time for each in rows]),
        torch.tensor(shown),
    )


def held(things: Sequence[Tensor], *, each: int, times: int, seed: int) -> Iterator[Row]:
    """Yield the rows of an evaluation, always the same: of every photograph, from little noise to
    much.

    :param each: rows of a photograph.
    """
    for at, variants in enumerate(things):
        for part in range(each):
            own = random(seed, THING, "held", at * each + part)
            yield noised(variants[0], int((part + 0.5) * times / each), own)


def random(*name: object) -> torch.Generator:
    """Return random numbers that a name decides."""
    digest = hashlib.blake2b(repr(name).encode(), digest_size=8).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest, "little") >> 1)
