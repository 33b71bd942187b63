"""Which prompts are answered when, and which answers each step of the optimizer takes.

A *round* writes answers with the model as it is, then takes so many steps on them: each of the
``iterations`` goes over all answers in ``minibatches`` steps. Checkpoints are made between rounds,
so that a run that is resumed writes the very answers that it would have written.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from glmkit import UsageError

from .experience import AnswerBatch, Experience


@dataclass(frozen=True, kw_only=True)
class Rounds:
    """How a run is parted.

    :raises UsageError: if answers cannot be shared out as they should be.
    """

    prompts: int
    """How many there are."""
    generations: int
    """Answers to each prompt of a round."""
    batch_size: int
    """Answers of a pass."""
    accumulation: int
    """Passes of a step, in each process."""
    minibatches: int = 1
    """Steps that each iteration over a round's answers takes."""
    iterations: int = 1
    """Times that a round's answers are gone over."""
    world: int = 1
    """Processes."""
    seed: int = 42

    def __post_init__(self) -> None:
        if self.own % self.generations:
            raise UsageError(
                f"a rollout is batch_size {self.batch_size} x gradient_accumulation "
                f"{self.accumulation} x minibatches {self.minibatches} = {self.own} answers, which "
                f"must be a multiple of generations {self.generations}; change one of them"
            )

    @property
    def step(self) -> int:
        """Answers of a step, of one process."""
        return self.batch_size * self.accumulation

    @property
    def own(self) -> int:
        """Answers of a round, of one process."""
        return self.step * self.minibatches

    @property
    def steps(self) -> int:
        """Steps of a round."""
        return self.minibatches * self.iterations

    @property
    def asked(self) -> int:
        """Prompts of a round, of all processes."""
        return self.own // self.generations * self.world

    @property
    def per_epoch(self) -> int:
        """Rounds in which each prompt is answered at least once."""
        return max(1, -(-self.prompts // self.asked))

    def chosen(self, epoch: int, round_: int, rank: int) -> list[int]:
        """Return the prompts that a process answers in a round of an epoch, each once.

        Where an epoch's last round would lack some, it begins with its first ones again.
        """
        order = random.Random(f"{self.seed} prompts {epoch}").sample(
            range(self.prompts), self.prompts
        )
        start = round_ * self.asked
        return [order[(start + at) % self.prompts] for at in range(rank, self.asked, self.world)]

    def parts(self, epoch: int, step: int, rank: int) -> list[int]:
        """Return which of a process' answers of its round a step takes, from 0."""
        round_, inner = divmod(step, self.steps)
        iteration, part = divmod(inner, self.minibatches)
        order = list(range(self.own))
        if self.steps > 1:
            said = f"{self.seed} parts {epoch} {round_} {iteration} {rank}"
            order = random.Random(said).sample(order, self.own)
        return order[part * self.step : (part + 1) * self.step]


Write = Callable[[int, int, int], list[Experience]]
"""Takes an epoch, a round of it and a process; returns the answers, those to a prompt together."""
Weigh = Callable[[Sequence[int]], Tensor]
"""Takes the sizes of a step's answers in a process; returns the weights of all their tokens."""


class RolloutFeed:
    """Gives each step its answers, which are written when the first step of their round begins."""

    def __init__(self, rounds: Rounds, weigh: Weigh) -> None:
        self.rounds, self.weigh = rounds, weigh
        self.write: Write | None = None
        """Set as soon as there is a model."""
        self._at: tuple[int, int] | None = None
        self._answers: list[Experience] = []

    def steps(self, epoch: int = 0) -> int:
        """Return how many steps an epoch has."""
        return self.rounds.per_epoch * self.rounds.steps

    def weight(self, epoch: int, step: int) -> float:
        """Return the answers of a step, of all processes."""
        return float(self.rounds.step * self.rounds.world)

    def tokens(self, epoch: int, step: int) -> int:
        """Return the tokens of a step, of all processes; of the others, as many as here."""
        if self._at != self._round(epoch, step):
            return 0
        own = (self._answers[at] for at in self.rounds.parts(epoch, step, 0))
        return sum(len(each.ids) for each in own) * self.rounds.world

    def batches(self, epoch: int, step: int, rank: int = 0) -> list[AnswerBatch]:
        """Return the passes of one process in a step.

        :raises BadStepError: if an answer is worth no number.
        """
        place = self._round(epoch, step)
        if self._at != place:
            if self.write is None:
                raise UsageError("there is no model yet that could answer")
            self._at, self._answers = None, []  # what is no longer needed is let go first
            self._answers = self.write(*place, rank)
            self._at = place
        own = [self._answers[at] for at in self.rounds.parts(epoch, step, rank)]
        sizes = [each.size for each in own]
        weights = torch.split(self.weigh(sizes).float(), sizes)
        size = self.rounds.batch_size
        return [
            AnswerBatch.of(own[at : at + size], weights[at : at + size])
            for at in range(0, len(own), size)
        ]

    def _round(self, epoch: int, step: int) -> tuple[int, int]:
        return epoch, step // self.rounds.steps
