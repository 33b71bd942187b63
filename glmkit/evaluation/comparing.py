"""Means of what was measured row by row, and how sure a difference of two means is.

A *measure* is a sum with the weight that it is of: a score with weight 1, the loss of a batch with
the tokens that it counts. Their mean is the sum of sums by the sum of weights.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

RESAMPLES = 1000
"""Draws of the bootstrap."""


class Measure(NamedTuple):
    """What was measured on one row, or on several together."""

    total: float
    weight: float = 1.0


def add(sums: dict[str, Measure], more: Mapping[str, Measure]) -> None:
    """Add measures to sums, by name."""
    for name, each in more.items():
        before = sums.get(name, Measure(0.0, 0.0))
        sums[name] = Measure(before.total + each.total, before.weight + each.weight)


def means(sums: Mapping[str, Measure]) -> dict[str, float]:
    """Return the mean of each measure, by name; of nothing there is none."""
    return {name: each.total / each.weight for name, each in sums.items() if each.weight}


@dataclass(frozen=True)
class Difference:
    """Mean of the second minus mean of the first, and where 95% of the resampled ones lie."""

    value: float
    low: float
    high: float

    @property
    def sure(self) -> bool:
        """Whether the interval leaves 0 out."""
        return self.low > 0 or self.high < 0


def perplexity(loss: float) -> float:
    """Return e to the loss; infinite where that is no number any more."""
    return math.exp(loss) if loss < 700 else math.inf


def mean(measures: Sequence[Measure]) -> float | None:
    """Return the mean; None of nothing."""
    weight = sum(each.weight for each in measures)
    return sum(each.total for each in measures) / weight if weight else None


def difference(
    first: Sequence[Measure], second: Sequence[Measure], *, seed: int = 0
) -> Difference | None:
    """Compare two models on the same rows, which are resampled as pairs; None without rows.

    :param first: measures of one model.
    :param second: those of the other, row by row.
    """
    before, after = mean(first), mean(second)
    if before is None or after is None:
        return None
    one, two = np.array(first, np.float64), np.array(second, np.float64)
    draws = np.random.default_rng(seed)
    even = np.full(len(one), 1 / len(one))
    found = []
    for _ in range(RESAMPLES):
        times = draws.multinomial(len(one), even)
        (a, a_weight), (b, b_weight) = times @ one, times @ two
        if a_weight and b_weight:
            found.append(b / b_weight - a / a_weight)
    low, high = np.quantile(found, (0.025, 0.975))
    return Difference(after - before, float(low), float(high))
