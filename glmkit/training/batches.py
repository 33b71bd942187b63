"""What a model is trained on: token ids with the weight of each in the loss, several in one row.

A batch is one row without pads: its samples stand one behind another, each with positions of its
own, and none sees another. A batch of eight samples, and a row packed to the full length, are the
same thing.

Letters: N tokens of a batch, S samples in it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Generic, Protocol, TypeVar

import numpy as np
import torch
from torch import Tensor

from .examples import Example, Examples, Listed
from .plan import Plan, Shape

__all__ = ["Batch", "Example", "Examples", "Feed", "Listed", "Weighed"]


@dataclass(frozen=True)
class Batch:
    """Several examples in one row."""

    ids: Tensor
    """int64 (N,)."""
    weights: Tensor
    """float32 (N,); the first token of an example has 0, since nothing foretells it."""
    lengths: tuple[int, ...]
    """Tokens of each example, S of them; their sum is N."""

    @classmethod
    def of(cls, examples: Sequence[Example]) -> Batch:
        """Put examples one behind another."""
        weights = [_behind_first(each.weights) for each in examples]
        return cls(
            torch.from_numpy(np.concatenate([each.ids for each in examples]).astype(np.int64)),
            torch.from_numpy(np.concatenate(weights)),
            tuple(map(len, examples)),
        )

    def to(self, device: torch.device) -> Batch:
        """Return the same on another device."""
        return Batch(self.ids.to(device), self.weights.to(device), self.lengths)

    @property
    def tokens(self) -> int:
        """N."""
        return len(self.ids)

    @property
    def weight(self) -> float:
        """The sum of all weights."""
        return float(self.weights.sum())

    def weightless(self) -> Batch:
        """Return the same without weight: it takes part, and nothing is learnt from it."""
        return Batch(self.ids, torch.zeros_like(self.weights), self.lengths)


def _behind_first(weights: np.ndarray) -> np.ndarray:
    own = weights.astype(np.float32)
    own[:1] = 0
    return own


ItemT = TypeVar("ItemT")


class Weighed(Protocol):
    """What batches of every kind have."""

    def weightless(self) -> Any:  # noqa: ANN401
        """Return the same without weight."""
        ...


BatchT = TypeVar("BatchT", bound=Weighed)


class Feed(Generic[ItemT, BatchT]):
    """Gives each process its batches, any step of any epoch at once.

    :param collate: makes a batch of the examples of a pass.
    """

    def __init__(
        self,
        examples: Examples[ItemT],
        shape: Shape,
        collate: Callable[[Sequence[ItemT]], BatchT],
    ) -> None:
        self.examples, self.collate = examples, collate
        self.plan = Plan(examples.lengths, shape)

    def steps(self, epoch: int = 0) -> int:
        """Return how many steps an epoch has: all have as many."""
        return self.plan.steps_per_epoch

    def batches(self, epoch: int, step: int, rank: int = 0) -> list[BatchT]:
        """Return the passes of one process in a step.

        Every process has as many: one that runs out of rows repeats some without weight, so that
        what processes do together stays in step.

        :param epoch: from 0.
        :param step: in that epoch, from 0 to ``steps() - 1``.
        """
        passes = self.plan.passes(epoch, step)
        world = self.plan.shape.world
        own = [self._batch(each) for each in passes[rank::world]]
        if len(own) < -(-len(passes) // world):
            least = min(passes, key=lambda each: int(self.plan.lengths[each].sum()))
            own.append(self._batch(least[:1]).weightless())
        return own

    def weight(self, epoch: int, step: int) -> float:
        """Return the weight of all tokens of a step, of all processes."""
        passes = self.plan.passes(epoch, step)
        return float(sum(self.examples.totals[each].sum() for each in passes))

    def tokens(self, epoch: int, step: int) -> int:
        """Return the tokens of a step, prompts included, of all processes."""
        return sum(int(self.plan.lengths[each].sum()) for each in self.plan.passes(epoch, step))

    def _batch(self, at: np.ndarray) -> BatchT:
        return self.collate([self.examples[each] for each in at.tolist()])
