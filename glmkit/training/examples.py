"""Samples as token ids. No torch: what makes them runs in processes that do without."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol, TypeVar, overload

import numpy as np

ItemT_co = TypeVar("ItemT_co", covariant=True)


@dataclass(frozen=True)
class Example:
    """A sample as token ids."""

    ids: np.ndarray
    """int32 (T,)."""
    weights: np.ndarray
    """float32 (T,): how much it counts that the model foretells this token; 0: not at all."""

    def __len__(self) -> int:
        return len(self.ids)


class Examples(Protocol[ItemT_co]):
    """Examples in memory or on disk, with what is planned by at hand."""

    @property
    def lengths(self) -> np.ndarray:
        """Tokens of each, int (n,)."""
        ...

    @property
    def totals(self) -> np.ndarray:
        """The weight of each in the loss, float (n,)."""
        ...

    def __getitem__(self, at: int, /) -> ItemT_co:
        """Return one."""
        ...


class Listed(Sequence[Example]):
    """Examples in memory."""

    def __init__(self, examples: Sequence[Example]) -> None:
        self._examples = tuple(examples)
        self.lengths = np.array([len(each) for each in examples], dtype=np.int64)
        """Tokens of each."""
        self.totals = np.array([each.weights[1:].sum() for each in examples], dtype=np.float64)
        """The weight of each in the loss."""

    def __len__(self) -> int:
        return len(self._examples)

    @overload
    def __getitem__(self, at: int) -> Example: ...
    @overload
    def __getitem__(self, at: slice) -> Sequence[Example]: ...
    def __getitem__(self, at: int | slice) -> Example | Sequence[Example]:
        return self._examples[at]
