"""From prompts to experience: answers are written, rewarded and measured.

Shapes: see `experience.py`.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor

from glmkit import BadStepError, GlmkitError
from glmkit.training.evaluating import judged
from glmkit.training.learner import computing_in
from glmkit.training.losses import token_log_probs
from glmkit.training.written import Asked, Written, seed_of, write_answers

from .experience import Experience, before_answers
from .gathering import gathered
from .rewards import LARGEST, REFERENCE, RewardError, Weighted, rated
from .rounds import Rounds

if TYPE_CHECKING:
    from glmkit.dataset.prompts import Prompt
    from glmkit.training.below import LocalModel

    from .initial import Initial

_NAMED = 5
"""Bad rows that an error lists."""


@dataclass(frozen=True)
class Question:
    """A prompt, ready to be answered."""

    prompt: Prompt
    ids: Sequence[int]


class Answered(NamedTuple):
    """An answer with what it is worth."""

    question: Question
    written: Written
    reward: float
    parts: Mapping[str, float]
    """What each reward says alone."""

    @property
    def figures(self) -> dict[str, float]:
        """What the log shows means of."""
        found = {"reward": self.reward, "length": float(len(self.written.ids))}
        found["ended"] = float(self.written.ended)
        if len(self.parts) > 1:
            found |= {f"reward_{name}": each for name, each in self.parts.items()}
        return found


Judge = Callable[[Sequence[tuple[Question, Written]]], Sequence[float | str]]
"""Says what answers are worth, all at once, or why it cannot read one: a reward model."""


class Known(NamedTuple):
    """What the models say of an answer's tokens, each (size,) on the processor."""

    log_probs: Tensor | None
    reference: Tensor | None
    values: Tensor | None


Credit = Callable[[Sequence[Answered], Sequence[Known], int], list[Experience]]
"""Turns what is known of a round's answers, and its number from 0, into what is learnt of them."""
Value = Callable[[Tensor], Tensor]
"""Takes hidden states (M, H), returns values (M,)."""


@dataclass
class Writer:
    """Writes the answers of rounds.

    :param old: measure log-probabilities of the policy; else those of the learner count.
    :param initial: measure those of the first model, in every so many rounds (``every``).
    """

    local: LocalModel
    questions: Sequence[Question]
    rounds: Rounds
    rewards: Sequence[Weighted]
    credit: Credit
    max_tokens: int
    temperature: float = 1.0
    computing: torch.dtype | None = None
    judge: Judge | None = None
    judge_weight: float = 1.0
    shuffled: bool = False
    old: bool = True
    initial: Initial | None = None
    every: int = 1
    value: Value | None = None

    def __call__(self, epoch: int, round_: int, rank: int) -> list[Experience]:
        """Return the experience of one process in a round, answers to a prompt together.

        :raises BadStepError: if a reward is no number; names the rows.
        """
        chosen = self.rounds.chosen(epoch, round_, rank)
        each = self.rounds.generations
        # By where a prompt stands in the round: it doesn't matter which process answers it.
        seeds = [
            seed_of(self.rounds.seed, epoch, round_, rank + at * self.rounds.world, number)
            for at in range(len(chosen))
            for number in range(each)
        ]
        answered = self.answered([at for at in chosen for _ in range(each)], seeds)
        if self.shuffled:
            answered = _shuffled(answered, f"{self.rounds.seed} rewards {epoch} {round_} {rank}")
        number = epoch * self.rounds.per_epoch + round_
        initial = None if number % self.every else self.initial
        return self.credit(answered, self.known(answered, initial), number)

    def answered(self, chosen: Sequence[int], seeds: Sequence[int]) -> list[Answered]:
        """Answer questions and reward the answers.

        :raises BadStepError: if a reward is no number; names the rows.
        """
        questions = [self.questions[at] for at in chosen]
        asked = [
            Asked(each.ids, each.prompt.messages, seed)
            for each, seed in zip(questions, seeds, strict=True)
        ]
        written = write_answers(
            self.local,
            asked,
            max_tokens=self.max_tokens,
            temperature=self.temperature,
            computing=self.computing,
        )
        return self._rewarded(list(zip(questions, written, strict=True)))

    def _rewarded(self, pairs: Sequence[tuple[Question, Written]]) -> list[Answered]:
        judged_ = [0.0] * len(pairs) if self.judge is None else self.judge(pairs)
        found: list[Answered] = []
        bad: list[tuple[str, str]] = []
        for (question, written), value in zip(pairs, judged_, strict=True):
            try:
                found.append(self._worth(question, written, value))
            except RewardError as error:
                said = f"{error} for the answer {written.text!r:.200}"
                bad.append((question.prompt.where, said))
        _refuse(list(chain.from_iterable(gathered(bad))))  # all processes stop together
        return found

    def _worth(self, question: Question, written: Written, judged_: float | str) -> Answered:
        prompt = question.prompt
        row = {**prompt.row, REFERENCE: prompt.reference} if prompt.reference else prompt.row
        found = rated(self.rewards, written.text, prompt.question, row)
        parts = dict(found.parts)
        total = found.total
        if self.judge is not None:
            if isinstance(judged_, str):
                raise RewardError(f"the reward model cannot read this: {judged_},")
            if not -LARGEST < judged_ < LARGEST:
                raise RewardError(f"the reward model says {judged_}")
            parts["model"], total = judged_, total + self.judge_weight * judged_
        if not -LARGEST < total < LARGEST:
            raise RewardError(f"all rewards together are {total:g}")
        return Answered(question, written, total, parts)

    def known(self, answered: Sequence[Answered], initial: Initial | None) -> list[Known]:
        """Ask the models about answers, a pass of ``batch_size`` at a time.

        :param initial: the first model, where it is asked.
        """
        if initial is None and not self.old and self.value is None:
            return [Known(None, None, None)] * len(answered)
        size = self.rounds.batch_size
        found: list[Known] = []
        with judged(self.local.model), computing_in(self.computing, self.local.model.like.device):
            for start in range(0, len(answered), size):
                found += self._asked(answered[start : start + size], initial)
        return found

    def _asked(self, answered: Sequence[Answered], initial: Initial | None) -> list[Known]:
        rows = [[*each.question.ids, *each.written.ids] for each in answered]
        sizes = [len(each.written.ids) for each in answered]
        ids = torch.tensor([at for row in rows for at in row]).to(self.local.model.like.device)
        model, lengths = self.local.model, [len(row) for row in rows]
        own, values = None, None
        if self.old or self.value is not None:
            hidden, wanted = before_answers(model, ids, lengths, sizes)
            own = token_log_probs(model, hidden, wanted, temperature=self.temperature)
            values = None if self.value is None else self.value(hidden).float()
        reference = None
        if initial is not None:
            with initial():
                hidden, wanted = before_answers(model, ids, lengths, sizes)
                reference = token_log_probs(model, hidden, wanted, temperature=self.temperature)
        parts = (_parted(each, sizes) for each in (own, reference, values))
        return [Known(*each) for each in zip(*parts, strict=True)]


def _refuse(bad: Sequence[tuple[str, str]]) -> None:
    """Refuse rewards that are none.

    :param bad: where the row of an answer stands, and what is wrong.
    :raises BadStepError: if there are any; names each row once.
    """
    if not bad:
        return
    rows: dict[str, list[str]] = {}
    for where, said in bad:
        rows.setdefault(where, []).append(said)
    lines = [
        f"{where}: {each[0]}" + (f" ({len(each)} answers)" if len(each) > 1 else "")
        for where, each in rows.items()
    ]
    more = f"\n  and {len(lines) - _NAMED:,} rows more" if len(lines) > _NAMED else ""
    raise BadStepError(
        "a reward must be a finite number:\n  " + "\n  ".join(lines[:_NAMED]) + more + "\n"
        "correct the reward and go on with --resume; without these rows it is another run, in "
        "another folder"
    )


def _parted(values: Tensor | None, sizes: Sequence[int]) -> Sequence[Tensor | None]:
    return [None] * len(sizes) if values is None else torch.split(values.cpu(), list(sizes))


def _shuffled(answered: Sequence[Answered], seed: str) -> list[Answered]:
    """Give each answer the reward of another: nothing can be learnt of it then."""
    order = random.Random(seed).sample(range(len(answered)), len(answered))
    return [
        each._replace(reward=answered[at].reward) for each, at in zip(answered, order, strict=True)
    ]


class HeldBatch(NamedTuple):
    """Answers to what is kept for evaluation: nothing but figures."""

    figures: Mapping[str, float]
    """Sums."""
    answers: int

    def to(self, device: torch.device) -> HeldBatch:
        """Stay where it is."""
        return self


class HeldFeed:
    """Answers the prompts of an evaluation with the model as it is, each time with one seed."""

    def __init__(self, questions: int, world: int, seed: int) -> None:
        self.questions, self.world, self.seed = questions, world, seed
        self.writer: Writer | None = None

    def steps(self, epoch: int = 0) -> int:
        """Return 1: all are answered side by side."""
        return 1

    def batches(self, epoch: int, step: int, rank: int = 0) -> list[HeldBatch]:
        """Return the figures of a process' share.

        :raises BadStepError: if a reward is no number.
        """
        if self.writer is None:
            raise GlmkitError("there is no model yet that could answer")
        own = list(range(rank, self.questions, self.world))
        found = self.writer.answered(own, [seed_of(self.seed, "held", at) for at in own])
        figures = {name: 0.0 for name in _names(self.writer)}
        for each in found:
            for name, value in each.figures.items():
                figures[name] += value
        return [HeldBatch(figures, len(found))]


def _names(writer: Writer) -> list[str]:
    """Return the figures of every answer; a process without answers has them, too."""
    parts = [each.title for each in writer.rewards]
    parts += ["model"] if writer.judge is not None else []
    more = [f"reward_{each}" for each in parts] if len(set(parts)) > 1 else []
    return ["reward", "length", "ended", *more]
