"""Answers with a verdict on their way into a run, and answers to other questions beside them.

How far a model has left its first self is measured, in each step, on the step's own answers, each
behind another one's question (KTO, section 4.1): what it writes there says nothing of the verdicts.

Letters: S answers, N tokens of the row.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from glmkit import DataError, Progress, StepLog
from glmkit.dataset import Data, Sample
from glmkit.training.batches import Feed
from glmkit.training.examples import Example
from glmkit.training.intake import Intake, reported, shape_of, tokens_of
from glmkit.training.plan import Shape
from glmkit.training.tokens import Tokens

from .reading import opened
from .rows import Row, joined

if TYPE_CHECKING:
    from collections.abc import Iterator

    from .kto import KtoConfig

BALANCED = (1.0, 4 / 3)
"""What good answers should weigh, all together, as a multiple of the others (KTO, equation 8)."""

_TRIED = 32
"""Ways in which answers are put behind other questions."""


@dataclass(frozen=True)
class Alone:
    """Answers with a verdict as conversations to learn from."""

    data: Data

    @property
    def fingerprint(self) -> str:
        """Equal data, equal fingerprint."""
        return f"verdicts {self.data.fingerprint}"

    def __len__(self) -> int:
        return len(self.data)

    def samples(self) -> Iterator[Sample]:
        """Yield the conversations."""
        return (each.sample for each in self.data.verdicts())


@dataclass(frozen=True)
class Judged:
    """An answer with a verdict, as token ids."""

    said: Example
    good: bool
    key: int = 0
    """Tells it from all others of a run."""


class Verdicts(Sequence[Judged]):
    """Answers with a verdict as token ids, on disk.

    :param tokens: of :class:`Alone`.
    :param good: bool, the verdict of each.
    :param first: the key of the first one.
    """

    def __init__(self, tokens: Tokens, good: np.ndarray, first: int = 0) -> None:
        self._tokens, self.first = tokens, first
        self.good = good[tokens.samples]
        """bool, the verdict of each that can be read."""
        self.lengths = np.asarray(tokens.lengths)
        """Tokens of each, with its question."""
        self.totals = np.ones(len(tokens))
        """The weight of each in the loss."""

    def __len__(self) -> int:
        return len(self._tokens)

    def __getitem__(self, at: int) -> Judged:  # type: ignore[override]  # nobody wants slices
        number = int(self._tokens.samples[at])
        return Judged(self._tokens[at], bool(self.good[at]), self.first + number)

    @property
    def described(self) -> str:
        """How many there are, for a person."""
        good = int(self.good.sum())
        tally = self._tokens.tally
        skipped = f", {tally.skipped:,} skipped" if tally.skipped else ""
        cut = f", {tally.cut:,} answers cut" if tally.cut else ""
        said = f"{good:,} desirable answers, {len(self) - good:,} undesirable{skipped}"
        return f"{said}; {int(self.lengths.sum()):,} tokens{cut}"


@dataclass(frozen=True)
class VerdictBatch(Row):
    """Several answers with a verdict in one row, S conversations."""

    good: Tensor
    """bool (S,)."""
    shares: Tensor
    """(S,): how much each counts, 1 or 0."""
    keys: tuple[int, ...]
    """Of the answers."""
    baseline: float = 0.0
    """The divergence from the first model, of the whole step, in nats an answer."""

    @classmethod
    def of(cls, answers: Sequence[Judged]) -> VerdictBatch:
        """Put answers one behind another."""
        row = joined([each.said for each in answers])
        return cls(
            **vars(row),
            good=torch.tensor([each.good for each in answers]),
            shares=torch.ones(len(answers)),
            keys=tuple(each.key for each in answers),
        )

    def weightless(self) -> VerdictBatch:
        """Return the same without weight: it takes part, and nothing is learnt from it."""
        return replace(self, shares=torch.zeros_like(self.shares))


Apart = tuple[int, int]
"""An answer's place, and that of another one, which follows the question of the first."""
Measuring = Callable[["Verdicts", Sequence[Apart]], float]
"""Measures the divergence from the first model; all processes call it together, each with its
share."""


class VerdictFeed(Feed[Judged, VerdictBatch]):
    """Gives each process its answers, with the divergence of the step."""

    examples: Verdicts

    def __init__(self, answers: Verdicts, shape: Shape) -> None:
        super().__init__(answers, shape, VerdictBatch.of)
        self.measure: Measuring | None = None
        """Set as soon as there is a model, where its loss wants that."""

    def batches(self, epoch: int, step: int, rank: int = 0) -> list[VerdictBatch]:
        """Return the passes of one process in a step."""
        own = super().batches(epoch, step, rank)
        return self.measured(own, self.plan.passes(epoch, step), rank)

    def measured(
        self, own: list[VerdictBatch], passes: Sequence[np.ndarray], rank: int
    ) -> list[VerdictBatch]:
        """Return the passes of one process with the divergence of them all.

        :param passes: of all processes.
        """
        if self.measure is None:
            return own
        partners = apart(self.examples, np.sort(np.concatenate(passes)).tolist())
        mine = [at for each in passes[rank :: self.plan.shape.world] for at in each.tolist()]
        baseline = self.measure(self.examples, [(at, partners[at]) for at in mine])
        return [replace(each, baseline=baseline) for each in own]


class HeldFeed:
    """Gives each process all that it evaluates at once, with one divergence of all answers."""

    def __init__(self, feed: VerdictFeed) -> None:
        self.feed = feed

    def steps(self, epoch: int = 0) -> int:
        """Return 1."""
        return 1

    def batches(self, epoch: int, step: int, rank: int = 0) -> list[VerdictBatch]:
        """Return the passes of one process."""
        steps = range(self.feed.steps())
        own = [each for at in steps for each in Feed.batches(self.feed, 0, at, rank)]
        passes = [each for at in steps for each in self.feed.plan.passes(0, at)]
        return self.feed.measured(own, passes, rank)


def apart(answers: Verdicts, places: Sequence[int]) -> dict[int, int]:
    """Return for each answer another one of these whose question is another, as far as may be.

    All are moved on by as many places as it takes; an answer that is alone gets one from elsewhere.
    """
    others = list(places)
    if len(others) == 1:
        more = min(len(answers) - 1, _TRIED)
        others += [(others[0] + at) % len(answers) for at in range(1, more + 1)]
    asked = [_question(answers[at].said) for at in others]
    count = len(places)

    def alike(shift: int) -> int:
        return sum(asked[at] == asked[(at + shift) % len(others)] for at in range(count))

    shifts = range(1, min(len(others), _TRIED + 1))
    shift = next((each for each in shifts if not alike(each)), None) or min(shifts, key=alike)
    return {places[at]: others[(at + shift) % len(others)] for at in range(count)}


def swapped(one: Example, other: Example, most: int) -> Example:
    """Return the question of one conversation with the answer of another.

    :param most: tokens; the end of the answer may be cut.
    """
    first, second = _start(one), _start(other)
    ids = np.concatenate((one.ids[:first], other.ids[second:]))[:most]
    weights = np.concatenate((one.weights[:first], other.weights[second:]))[:most]
    return Example(ids, weights)


def _start(said: Example) -> int:
    """Return where the answer begins."""
    return int((said.weights > 0).argmax())


def _question(said: Example) -> bytes:
    return said.ids[: _start(said)].tobytes()


def taken_in(config: KtoConfig, world: int) -> Generator[StepLog, None, Intake]:
    """Read and tokenise the answers that a configuration names.

    :param world: processes that share the steps.
    :raises DataError: if there is nothing that could be learnt.
    :raises UsageError: if no data is named.
    """
    data, held = yield from opened(config, "verdicts")
    answers = yield from reported(_read(data, config, "learn from"))
    feed = VerdictFeed(answers, shape_of(config, world))
    watched = None
    if held is not None:
        own = yield from reported(_read(held, config, "evaluate on", first=len(data)))
        shape = Shape(batch_size=config.batch_size, world=world)
        watched = HeldFeed(VerdictFeed(own, shape))
    good = int(answers.good.sum())
    said = f"{data.described}\n{answers.described}{hint(good, len(answers) - good, config)}"
    return Intake(feed, feed.plan.longest, watched, said, data.fingerprint, len(answers))


def _read(
    data: Data, config: KtoConfig, purpose: str, *, first: int = 0
) -> Generator[Progress, None, Verdicts]:
    """Tokenise answers.

    :raises DataError: if fewer can be read than the loss needs.
    """
    tokens = yield from tokens_of(Alone(data), config)
    if config.loss == "kto" and len(tokens) < 2:  # the divergence is of answers to other questions
        raise DataError(
            f"two answers or more are needed to {purpose}: {tokens.tally}; --loss "
            "apo_zero_unpaired does with one"
        )
    return Verdicts(tokens, np.array([each.good for each in data.verdicts()], bool), first)


def hint(good: int, bad: int, config: KtoConfig) -> str:
    """Say how to balance so many good answers and others, where they are not."""
    if not good or not bad:
        kind, other = ("undesirable", "desirable") if not good else ("desirable", "undesirable")
        return (
            f"\nall answers are {kind}: what is learnt is only to write "
            f"{'like' if good else 'unlike'} them; kto is made for data with {other} ones, too"
        )
    if not config.desirable_weight or not config.undesirable_weight:
        return ""
    ratio = good * config.desirable_weight / (bad * config.undesirable_weight)
    low, high = BALANCED
    if low - 0.01 <= ratio <= high + 0.01:
        return ""
    weight = config.undesirable_weight * bad / good
    least, most = _above(weight * low), -_above(-weight * high)
    return (
        f"\ndesirable answers weigh {ratio:.2f} times as much as the others, all together; KTO's "
        f"authors take 1 to 1.33 times: --desirable-weight {least:.3g} to {most:.3g}"
    )


def _above(value: float) -> float:
    """Return the next number from ``value`` upwards that has three digits."""
    step = 10.0 ** (math.floor(math.log10(abs(value))) - 2)
    return math.ceil(value / step - 1e-6) * step
