"""Reports of ``glmkit evaluate``: tables for people, and the same as JSON."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from glmkit.evaluation.comparing import Difference, difference, mean, perplexity
from glmkit.evaluation.forgetting import Forgetting
from glmkit.evaluation.scores import LOSS
from glmkit.training.measuring import Figures, forgotten

_ORDER = (
    *("loss", "perplexity", "bleu-4", "bleu-4-words"),
    *("rouge-1", "rouge-2", "rouge-l", "exact"),
)
_MOST_BROKEN = 10
_CLIP = 70
"""Characters of an answer that a table shows."""


@dataclass(frozen=True)
class Line:
    """One score of all models."""

    name: str
    values: tuple[float | None, ...]
    """One for each model; None where it was not measured."""
    difference: Difference | None = None
    """The last model's minus the first one's."""


@dataclass(frozen=True)
class Report:
    """What was measured of one model, or of two."""

    figures: tuple[Figures, ...]
    rows: int = 0
    """Samples that were looked at."""
    asked_general: bool = False

    @property
    def forgetting(self) -> Forgetting | None:
        """What the second model has forgotten; None where nobody asked, or there is no second."""
        if not self.asked_general or len(self.figures) < 2:
            return None
        return forgotten(*self.figures)

    def lines(self) -> list[Line]:
        """Return the scores that were measured."""
        found = {name for each in self.figures for name in each.rows}
        lines = [self._line(name) for name in _ORDER if name in found]
        at = next((at for at, each in enumerate(lines) if each.name == LOSS), None)
        if at is not None:
            lines.insert(at + 1, _perplexity(lines[at]))
        return lines

    def _line(self, name: str) -> Line:
        measured = [each.rows.get(name, {}) for each in self.figures]
        values = tuple(mean(list(each.values())) for each in measured)
        if len(measured) < 2 or (name == LOSS and not self._same_tokens()):
            return Line(name, values)
        first, second = measured
        both = sorted(first.keys() & second.keys())
        compared = difference([first[each] for each in both], [second[each] for each in both])
        return Line(name, values, compared)

    def _same_tokens(self) -> bool:
        """Tell whether losses are of the same tokens."""
        return len({each.lengths for each in self.figures}) == 1

    def as_dict(self) -> dict[str, Any]:
        """Return what is printed as JSON."""
        found: dict[str, Any] = {"samples": self.rows}
        for at, figures in enumerate(self.figures):
            scores = {line.name: line.values[at] for line in self.lines()}
            found[figures.name] = {**scores, "unanswered": figures.failed}
        if len(self.figures) > 1:
            found["difference"] = {
                line.name: _interval(line.difference)
                for line in self.lines()
                if line.difference is not None
            }
        if self.forgetting is not None:
            found["forgetting"] = self.forgetting.as_dict()
        return found

    def text(self) -> str:
        """Return it for people."""
        parts = []
        if self.rows:
            parts.append("\n".join(self._table()))
        if self.forgetting is not None:
            parts.append("\n".join(_forgetting(self.forgetting)))
        return "\n\n".join(parts)

    def _table(self) -> Iterator[str]:
        both = len(self.figures) > 1
        head = "".join(f"{each.name:>10}" for each in self.figures)
        yield f"{f'{self.rows:,} samples':<16}{head}" + ("   difference (95%)" if both else "")
        for line in self.lines():
            cells = "".join(f"{_cell(each):>10}" for each in line.values)
            yield f"{line.name:<16}{cells}   {_difference(line)}".rstrip()
        for figures in self.figures:
            if figures.failed:
                yield f"{figures.failed} samples have no answer by {figures.name}: see its file"


def _perplexity(loss: Line) -> Line:
    """Return what losses mean as perplexities; their quotient says what their difference does."""
    values = tuple(None if each is None else perplexity(each) for each in loss.values)
    found = loss.difference
    ratio = (
        None
        if found is None
        else Difference(*map(perplexity, (found.value, found.low, found.high)))
    )
    return Line("perplexity", values, ratio)


def _interval(found: Difference) -> dict[str, float]:
    return {"value": found.value, "low": found.low, "high": found.high}


def _cell(value: float | None) -> str:
    if value is None:
        return "-"
    return f"{value:.4g}" if value >= 1e4 else f"{value:.2f}" if value >= 10 else f"{value:.3f}"


def _difference(line: Line) -> str:
    found = line.difference
    if found is None:
        return ""
    if line.name == "perplexity":
        return f"x{found.value:.3g} (x{found.low:.3g} to x{found.high:.3g})"
    return f"{found.value:+.3g} ({found.low:+.3g} to {found.high:+.3g})"


def _forgetting(found: Forgetting) -> Iterator[str]:
    right = found.right
    yield f"{len(found.outcomes)} general questions"
    interval = (
        "" if right is None else f"   {right.value:+.0%} ({right.low:+.0%} to {right.high:+.0%})"
    )
    yield f"  answered right   {found.base_right:.0%} before, {found.tuned_right:.0%} now{interval}"
    yield f"  other answers    {found.changed:.0%}"
    if found.perplexity_ratio is not None:
        yield f"  general texts    x{found.perplexity_ratio:.2f} as perplexing as before"
    yield f"  verdict          {verdict(found)}"
    for outcome in found.broken[:_MOST_BROKEN]:
        yield f"  broke: {outcome.question.question}"
        yield f"    before: {_clipped(outcome.base)}"
        yield f"    now:    {_clipped(outcome.tuned)}"
    if len(found.broken) > _MOST_BROKEN:
        yield f"  and {len(found.broken) - _MOST_BROKEN} more that broke"


def verdict(found: Forgetting) -> str:
    """Say in words how much was forgotten."""
    right, ratio = found.right, found.perplexity_ratio or 1.0
    fell = 0.0 if right is None else -right.value
    if (right is not None and right.high < 0) or ratio > _MUCH or fell > _FELL:
        return (
            "much was forgotten: train fewer epochs or at a lower learning rate, or mix general "
            "samples into the data"
        )
    if ratio > _SOME or fell > _FELL / 2:
        return "some was forgotten"
    return "little or nothing was forgotten"


_MUCH, _SOME, _FELL = 2.0, 1.25, 0.2
"""Perplexity ratios, and how many of the questions fewer are answered right."""


def _clipped(text: str) -> str:
    plain = " ".join(text.split())
    return plain if len(plain) <= _CLIP else f"{plain[:_CLIP]}..."
