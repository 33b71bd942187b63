"""Preferences on their way into a run: both answers of a pair as tokens, several pairs in one row.

The better answer with its prompt stands in front of the worse one with the same prompt; neither
sees the other, and there are no pads.

Letters: S pairs, N tokens of the row.
"""

from __future__ import annotations

from collections.abc import Generator, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from glmkit import DataError, Progress, StepLog
from glmkit.dataset import Data, Sample
from glmkit.dataset.samples import compared
from glmkit.training.batches import Feed
from glmkit.training.examples import Example
from glmkit.training.intake import Intake, reported, shape_of, tokens_of
from glmkit.training.plan import Shape
from glmkit.training.tokens import Tokens

from .reading import opened
from .rows import Row, joined

if TYPE_CHECKING:
    from .opinions import PairConfig


@dataclass(frozen=True)
class Sides:
    """Preferences as conversations: of each, one with the better answer and one with the worse."""

    data: Data

    @property
    def fingerprint(self) -> str:
        """Equal data, equal fingerprint."""
        return f"sides {self.data.fingerprint}"

    def __len__(self) -> int:
        return 2 * len(self.data)

    def samples(self) -> Iterator[Sample]:
        """Yield both conversations of each preference."""
        for each in self.data.preferences():
            yield compared(each, 0)
            yield compared(each, 1)


@dataclass(frozen=True)
class Pair:
    """A preference as token ids."""

    chosen: Example
    rejected: Example
    margin: float = 0.0
    key: int = 0
    """Tells it from all other pairs of a run."""

    def __len__(self) -> int:
        return len(self.chosen) + len(self.rejected)


class Pairs(Sequence[Pair]):
    """Preferences as token ids, on disk.

    :param tokens: of :class:`Sides`.
    :param margins: of each preference.
    :param first: the key of the first pair.
    :raises DataError: if of no pair both answers can be read.
    """

    def __init__(self, tokens: Tokens, margins: np.ndarray, first: int = 0) -> None:
        self._tokens, self._margins, self.first = tokens, margins, first
        row_of = {int(sample): row for row, sample in enumerate(tokens.samples)}
        whole = [at for at in range(len(margins)) if {2 * at, 2 * at + 1} <= row_of.keys()]
        if not whole:
            raise DataError(f"of no pair both answers fit into max_length: {tokens.tally}")
        self._rows = [(row_of[2 * at], row_of[2 * at + 1], at) for at in whole]
        self.lengths = np.array(
            [tokens.lengths[better] + tokens.lengths[worse] for better, worse, _ in self._rows]
        )
        """Tokens of each pair."""
        self.totals = np.ones(len(self._rows))
        """The weight of each pair in the loss."""

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, at: int) -> Pair:  # type: ignore[override]  # nobody wants slices
        better, worse, number = self._rows[at]
        margin = float(self._margins[number])
        return Pair(self._tokens[better], self._tokens[worse], margin, self.first + number)

    @property
    def described(self) -> str:
        """How many there are, for a person."""
        lost = len(self._margins) - len(self)
        skipped = f", {lost:,} skipped" if lost else ""
        cut = self._tokens.tally.cut
        return f"{len(self):,} pairs{skipped}; {int(self.lengths.sum()):,} tokens" + (
            f", {cut:,} answers cut" if cut else ""
        )


@dataclass(frozen=True)
class PairBatch(Row):
    """Several pairs in one row: better, worse, better, worse, ..., 2S conversations."""

    margins: Tensor
    """(S,)."""
    shares: Tensor
    """(S,): how much each pair counts, 1 or 0."""
    keys: tuple[int, ...]
    """Of the pairs."""

    @classmethod
    def of(cls, pairs: Sequence[Pair]) -> PairBatch:
        """Put pairs one behind another."""
        row = joined([side for each in pairs for side in (each.chosen, each.rejected)])
        return cls(
            **vars(row),
            margins=torch.tensor([each.margin for each in pairs]),
            shares=torch.ones(len(pairs)),
            keys=tuple(each.key for each in pairs),
        )

    def weightless(self) -> PairBatch:
        """Return the same without weight: it takes part, and nothing is learnt from it."""
        return replace(self, shares=torch.zeros_like(self.shares))

    def alone(self, at: int) -> Row:
        """Return the answers of one of its pairs by themselves."""
        return self.some(2 * at, 2 * at + 2)


def taken_in(config: PairConfig, world: int) -> Generator[StepLog, None, Intake]:
    """Read and tokenise the preferences that a configuration names.

    :param world: processes that share the steps.
    :raises DataError: if there is nothing that could be learnt.
    :raises UsageError: if no data is named.
    """
    data, held = yield from opened(config, "preferences", ranked=config.ranked)
    pairs = yield from reported(_read(data, config))
    feed = Feed(pairs, shape_of(config, world), PairBatch.of)
    watched = None
    if held is not None:
        own = yield from reported(_read(held, config, first=len(data)))
        watched = Feed(own, Shape(batch_size=config.batch_size, world=world), PairBatch.of)
    said = f"{data.described}\n{pairs.described}"
    return Intake(feed, feed.plan.longest, watched, said, data.fingerprint, len(pairs))


def _read(data: Data, config: PairConfig, *, first: int = 0) -> Generator[Progress, None, Pairs]:
    tokens = yield from tokens_of(Sides(data), config)
    margins = np.array([each.margin or 0.0 for each in data.preferences()], np.float32)
    return Pairs(tokens, margins, first)
