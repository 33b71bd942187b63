"""Preferences on their way into a run: both answers of a pair as tokens, several pairs in one row.

The better answer with its prompt stands in front of the worse one with the same prompt; neither
sees the other, and there are no pads.

Letters: S pairs, N tokens of the row.
"""

from __future__ import annotations

from collections.abc import Generator, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from glmkit import DataError, Progress, StepLog, UsageError
from glmkit.dataset import ColumnNames, Data, Sample, opening
from glmkit.dataset.samples import compared
from glmkit.dataset.specs import is_saved
from glmkit.training.batches import Feed
from glmkit.training.examples import Example
from glmkit.training.intake import Intake, reported, shape_of, tokens_of
from glmkit.training.plan import Shape
from glmkit.training.tokens import Tokens

if TYPE_CHECKING:
    from .paired import PairConfig


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
class PairBatch:
    """Several pairs in one row."""

    ids: Tensor
    """int64 (N,)."""
    learnt: Tensor
    """bool (N,): tokens of answers."""
    lengths: tuple[int, ...]
    """Tokens of each conversation, 2S: better, worse, better, worse, ..."""
    margins: Tensor
    """(S,)."""
    shares: Tensor
    """(S,): how much each pair counts, 1 or 0."""
    keys: tuple[int, ...]
    """Of the pairs."""

    @classmethod
    def of(cls, pairs: Sequence[Pair]) -> PairBatch:
        """Put pairs one behind another."""
        sides = [side for each in pairs for side in (each.chosen, each.rejected)]
        ids = np.concatenate([each.ids for each in sides]).astype(np.int64)
        return cls(
            torch.from_numpy(ids),
            torch.from_numpy(np.concatenate([each.weights > 0 for each in sides])),
            tuple(map(len, sides)),
            torch.tensor([each.margin for each in pairs]),
            torch.ones(len(pairs)),
            tuple(each.key for each in pairs),
        )

    def to(self, device: torch.device) -> PairBatch:
        """Return the same on another device."""
        moved = {
            name: getattr(self, name).to(device) for name in ("ids", "learnt", "margins", "shares")
        }
        return replace(self, **moved)

    def weightless(self) -> PairBatch:
        """Return the same without weight: it takes part, and nothing is learnt from it."""
        return replace(self, shares=torch.zeros_like(self.shares))

    def alone(self, at: int) -> PairBatch:
        """Return one of its pairs by itself."""
        start = sum(self.lengths[: 2 * at])
        end = start + sum(self.lengths[2 * at : 2 * at + 2])
        return PairBatch(
            self.ids[start:end],
            self.learnt[start:end],
            self.lengths[2 * at : 2 * at + 2],
            self.margins[at : at + 1],
            self.shares[at : at + 1],
            self.keys[at : at + 1],
        )

    @property
    def sizes(self) -> tuple[int, ...]:
        """Tokens of each answer, 2S of them."""
        parts = torch.split(self.learnt, list(self.lengths))
        return tuple(int(each.sum()) for each in parts)


def taken_in(config: PairConfig, world: int) -> Generator[StepLog, None, Intake]:
    """Read and tokenise the preferences that a configuration names.

    :param world: processes that share the steps.
    :raises DataError: if there is nothing that could be learnt.
    :raises UsageError: if no data is named.
    """
    if not config.data:
        raise UsageError("there is nothing to learn from; name files with --data")
    data = yield from reported(_opened(config, config.data))
    held: Data | None = None
    if config.eval_data:
        held = yield from reported(_opened(config, config.eval_data))
    elif config.val_size:
        data, held = data.split(config.val_size, seed=config.seed)
    pairs = yield from reported(_read(data, config))
    feed = Feed(pairs, shape_of(config, world), PairBatch.of)
    watched = None
    if held is not None:
        own = yield from reported(_read(held, config, first=len(data)))
        watched = Feed(own, Shape(batch_size=config.batch_size, world=world), PairBatch.of)
    said = f"{data.described}\n{pairs.described}"
    return Intake(feed, feed.plan.longest, watched, said, data.fingerprint, len(pairs))


def _opened(config: PairConfig, specs: Sequence[str]) -> Generator[Progress, None, Data]:
    if any(is_saved(Path(each)) for each in specs):
        raise UsageError("tokenised data holds no preferences; name the files that it was made of")
    columns = ColumnNames(
        prompt=config.prompt_column,
        history=config.history_column,
        chosen=config.chosen_column or config.response_column,
        rejected=config.rejected_column,
    )
    return (
        yield from opening(
            specs,
            dataset_dir=config.dataset_dir,
            columns=columns,
            seed=config.seed,
            skip_bad=config.skip_bad,
            kind="preferences",
            ranked=config.ranked,
        )
    )


def _read(data: Data, config: PairConfig, *, first: int = 0) -> Generator[Progress, None, Pairs]:
    tokens = yield from tokens_of(Sides(data), config)
    margins = np.array([each.margin or 0.0 for each in data.preferences()], np.float32)
    return Pairs(tokens, margins, first)
