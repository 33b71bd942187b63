"""How often a reward model tells the better answer, and how sure that is."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from glmkit import DataError
from glmkit.dataset import Preference
from glmkit.evaluation.comparing import Difference, Measure, difference

_Z = 1.959963984540054
"""Of a normal distribution, 95% lie within so many deviations."""


class Share(NamedTuple):
    """A share of trials, and where it lies with 95% by Wilson's interval (1927)."""

    value: float
    low: float
    high: float


def wilson(right: float, count: int) -> Share:
    """Return a share with its interval.

    :param right: trials that came out right, a half for each draw.
    :param count: of all trials, 1 or more.
    """
    share, square = right / count, _Z**2
    centre = (share + square / (2 * count)) / (1 + square / count)
    spread = share * (1 - share) / count + square / (4 * count**2)
    half = _Z / (1 + square / count) * math.sqrt(spread)
    return Share(share, max(0.0, centre - half), min(1.0, centre + half))


@dataclass(frozen=True)
class Accuracy:
    """What a reward model says of pairs, beside what their lengths alone say."""

    pairs: int
    right: Share
    """Pairs whose better answer is worth more; a draw counts half."""
    longer: Share
    """Pairs whose better answer is the longer one, in characters."""
    gain: Difference
    """The first minus the second, of the same pairs."""
    margin: float
    """The mean of what the better answer is worth more."""

    @classmethod
    def of(
        cls, pairs: Sequence[Preference], chosen: Sequence[float], rejected: Sequence[float]
    ) -> Accuracy:
        """Compare scores with preferences, pair by pair.

        :raises DataError: if there are none.
        """
        told = [_beats(*both) for both in zip(chosen, rejected, strict=True)]
        sizes = [(len(each.chosen.content), len(each.rejected.content)) for each in pairs]
        longer = [_beats(*both) for both in sizes]
        gain = difference(list(map(Measure, longer)), list(map(Measure, told)))
        if gain is None:
            raise DataError("there are no pairs to compare")
        margin = sum(a - b for a, b in zip(chosen, rejected, strict=True)) / len(pairs)
        count = len(pairs)
        return cls(count, wilson(sum(told), count), wilson(sum(longer), count), gain, margin)

    def as_dict(self) -> dict[str, Any]:
        """Return it, ready for JSON."""
        return {
            "pairs": self.pairs,
            "accuracy": self.right._asdict(),
            "longer_answer": self.longer._asdict(),
            "difference": {name: getattr(self.gain, name) for name in ("value", "low", "high")},
            "margin": self.margin,
        }

    @property
    def text(self) -> str:
        """Return it for a person."""
        return (
            f"{self.pairs:,} pairs: {_percent(self.right)} told right, {_percent(self.longer)} by "
            f"taking the longer answer; difference {self.gain.value:+.1%} "
            f"({self.gain.low:+.1%} to {self.gain.high:+.1%}); mean margin {self.margin:+.3f}"
        )


def _beats(one: float, other: float) -> float:
    return 0.5 if one == other else float(one > other)


def _percent(share: Share) -> str:
    return f"{share.value:.1%} ({share.low:.1%} to {share.high:.1%})"
