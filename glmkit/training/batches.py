"""What a model is trained on: token ids with the weight of each in the loss, several in one row.

A batch is one row without pads: its samples stand one behind another, each with positions of its
own, and none sees another. A batch of eight samples, and a row packed to the full length, are the
same thing.

Letters: N tokens of a batch, S samples in it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor


@dataclass(frozen=True)
class Example:
    """A sample as token ids."""

    ids: np.ndarray
    """int32 (T,)."""
    weights: np.ndarray
    """float32 (T,): how much it counts that the model foretells this token; 0: not at all."""

    def __len__(self) -> int:
        return len(self.ids)


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
    def weight(self) -> float:
        """The sum of all weights."""
        return float(self.weights.sum())


def _behind_first(weights: np.ndarray) -> np.ndarray:
    own = weights.astype(np.float32)
    own[:1] = 0
    return own
