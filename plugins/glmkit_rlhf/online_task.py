"""The task of learning from one's own answers: prompts, rounds of answers, figures."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Generator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from glmkit import CheckpointError, DataError, StepLog
from glmkit.dataset.columns import ColumnNames
from glmkit.dataset.prompts import Prompts, reading_prompts
from glmkit.training.intake import Intake, reported
from glmkit.training.learner import Loss, computing_in
from glmkit.training.losses import token_likelihoods
from glmkit.training.written import prompts_of

from .experience import AnswerBatch, Experience, before_answers
from .gathering import gathered
from .grpo import LossKind
from .initial import Initial
from .judging import Judging
from .objectives import k3, per_answer, token_weights
from .rewards import Weighted
from .rounds import RolloutFeed, Rounds
from .writing import Answered, HeldBatch, HeldFeed, Known, Question, Value, Writer

if TYPE_CHECKING:
    from glmkit.training.below import CausalModel, LocalModel
    from glmkit.training.config import TrainConfig
    from glmkit.training.tuning import Tuning

    from .online import OnlineConfig


class OnlineTask(ABC):
    """Answers are written, rewarded, and learnt from; subclasses say how.

    :param generations: answers to each prompt of a round.
    :param judging: loads a reward model.
    """

    drawn: tuple[str, ...] = ("loss",)
    unit = "loss"
    per_token = False

    def __init__(
        self,
        config: OnlineConfig,
        tuning: Tuning,
        rewards: Sequence[Weighted],
        *,
        generations: int = 1,
        judging: Judging | None = None,
    ) -> None:
        self.config, self.tuning, self.rewards = config, tuning, rewards
        self.generations, self.judging = generations, judging
        self._questions: list[Question] = []
        self._held_questions: list[Question] = []

    @property
    @abstractmethod
    def compares(self) -> bool:
        """Whether the divergence from the first model counts, so that it is asked each time."""

    @property
    @abstractmethod
    def asks_policy(self) -> bool:
        """Whether the policy itself is asked about each answer, before the first step on it."""

    @abstractmethod
    def weigh(self, sizes: Sequence[int]) -> Tensor:
        """Return the weights (M,) of the tokens of a step's answers."""

    @abstractmethod
    def credit(
        self, answered: Sequence[Answered], known: Sequence[Known], number: int
    ) -> list[Experience]:
        """Turn what is known of a round's answers into what is learnt from them.

        :param number: of the round, from 0.
        """

    @abstractmethod
    def policy(self, local: LocalModel, computing: torch.dtype | None) -> PolicyLearner:
        """Return what gives the loss of answers."""

    def taken_in(self, config: TrainConfig, world: int) -> Generator[StepLog, None, Intake]:
        """Read prompts, and turn them into tokens."""
        prompts, held = yield from self._read()
        self._questions, left = self._rendered(prompts)
        if not self._questions:
            raise DataError(f"no prompt can be answered: {left[0]}")
        apart = ""
        if held is not None:
            self._held_questions, lost = self._rendered(held)
            if not self._held_questions:
                raise DataError(_NONE_HELD + (f": {lost[0]}" if lost else ""))
            apart = f"\n{len(self._held_questions):,} prompts to evaluate on{_left_out(lost)}"
        self.rounds = self._rounds(world)
        self.feed = RolloutFeed(self.rounds, self.weigh)
        self.held = HeldFeed(len(self._held_questions), world, config.seed)
        return Intake(
            self.feed,
            self._longest * config.batch_size,
            self.held if self._held_questions else None,
            self._described(prompts, left) + apart,
            prompts.fingerprint,
            len(self._questions),
        )

    def learner(
        self, config: TrainConfig, local: LocalModel, computing: torch.dtype | None
    ) -> nn.Module:
        """Return what gives the loss of answers, and let answers be written from now on."""
        learner = self.policy(local, computing)
        initial, every = None, 1 if self.compares else self.config.measured_every
        if every:
            initial = Initial.of(local.model, self.tuning, config.init_adapter)
        judge = None if self.judging is None else self.judging(local.model.like.device)
        writer = Writer(
            local,
            self._questions,
            self.rounds,
            self.rewards,
            self.credit,
            max_tokens=self.config.max_new_tokens,
            temperature=self.config.temperature,
            computing=computing,
            judge=judge,
            judge_weight=self.config.weights[-1],
            shuffled=self.config.shuffle_rewards,
            old=self.asks_policy,
            initial=initial,
            every=max(1, every),
            value=learner.value,
        )
        self.feed.write = writer
        self.held.writer = replace(writer, questions=self._held_questions, initial=None)
        return learner

    def _read(self) -> Generator[StepLog, None, tuple[Prompts, Prompts | None]]:
        config = self.config
        prompts = yield from self._opened(config.data)
        if config.eval_data:
            return prompts, (yield from self._opened(config.eval_data))
        if config.val_size:
            return prompts.split(config.val_size, seed=config.seed)
        return prompts, None

    def _opened(self, specs: Sequence[str]) -> Generator[StepLog, None, Prompts]:
        config = self.config
        columns = ColumnNames(
            prompt=config.prompt_column,
            response=config.response_column,
            history=config.history_column,
        )
        reading = reading_prompts(
            specs,
            dataset_dir=config.dataset_dir,
            columns=columns,
            seed=config.seed,
            skip_bad=config.skip_bad,
        )
        return (yield from reported(reading))

    def _rendered(self, prompts: Prompts) -> tuple[list[Question], list[str]]:
        """Return prompts as tokens, and why some have none."""
        from glmkit.training.below import open_renderer, read_model

        config = self.config
        renderer = open_renderer(Path(config.model), family=config.family)
        if renderer is None:
            raise CheckpointError(
                f"{config.model} has no vocabulary or chat format that this version of glmkit "
                "reads, so it cannot answer"
            )
        if config.system is not None:
            renderer = replace(renderer, system=config.system)
        shape = read_model(Path(config.model), config.family).config
        room = min(config.max_length, shape.context_length) - config.max_new_tokens
        found: list[Question] = []
        left: list[str] = []
        conversations = [each.messages for each in prompts.prompts]
        rendered = prompts_of(renderer, conversations, room=room)
        for prompt, ids in zip(prompts.prompts, rendered, strict=True):
            if isinstance(ids, str):
                left.append(f"{prompt.where}: {ids}")
            else:
                found.append(Question(prompt, ids))
        return self._readable(found, left)

    def _readable(
        self, questions: list[Question], left: list[str]
    ) -> tuple[list[Question], list[str]]:
        """Refuse questions that the judge cannot read, or leave them out.

        :raises DataError: naming them.
        """
        if self.judging is None or not questions:
            return questions, left
        why = self.judging.unreadable([each.prompt for each in questions])
        pairs = list(zip(questions, why, strict=True))
        bad = [f"{each.prompt.where}: {said}" for each, said in pairs if said]
        if bad and not self.config.skip_bad:
            raise DataError(_UNREAD.format(len(bad), len(pairs), _few(bad)))
        left += [f"{each} (the reward model)" for each in bad]
        return [each for each, said in pairs if not said], left

    @property
    def _longest(self) -> int:
        """Tokens that a prompt and its answer may have."""
        return max(len(each.ids) for each in self._questions) + self.config.max_new_tokens

    def _rounds(self, world: int) -> Rounds:
        config = self.config
        return Rounds(
            prompts=len(self._questions),
            generations=self.generations,
            batch_size=config.batch_size,
            accumulation=config.gradient_accumulation,
            minibatches=config.minibatches,
            iterations=config.iterations,
            world=world,
            seed=config.seed,
        )

    def _described(self, prompts: Prompts, left: Sequence[str]) -> str:
        rounds = self.rounds
        said = (
            f"{len(self._questions):,} prompts; a round is {rounds.asked} of them, "
            f"{self.generations} answers each, and {rounds.steps} steps"
        )
        return f"{prompts.described}\n{said}{_left_out(left)}"


_NAMED = 10
"""Rows that an error lists."""
_UNREAD = (
    "the reward model cannot read {} of {} prompts, so answers to them are worth nothing that is "
    "known:\n  {}\nshorten them, train it with a larger --max-length, or leave them out: --skip-bad"
)


def _few(rows: Sequence[str]) -> str:
    more = len(rows) - _NAMED
    return "\n  ".join(rows[:_NAMED]) + (f"\n  and {more:,} more" if more > 0 else "")


_NONE_HELD = "no prompt to evaluate on can be answered"


def _left_out(why: Sequence[str]) -> str:
    return f"; {len(why):,} are left out, for example {why[0]}" if why else ""


def weights_of(sizes: Sequence[int], kind: LossKind, *, longest: int) -> Tensor:
    """Return the weights (M,) of the tokens of this process' answers, by those of all."""
    found = gathered(list(sizes))
    tokens, answers = sum(map(sum, found)), sum(map(len, found))
    return token_weights(sizes, kind, longest=longest, tokens=tokens, answers=answers)


class PolicyLearner(nn.Module):
    """A causal model that is asked for the loss of its answers.

    :param value: what is asked for values (PPO).
    """

    def __init__(
        self,
        model: CausalModel,
        *,
        computing: torch.dtype | None,
        temperature: float,
        value: Value | None = None,
    ) -> None:
        super().__init__()
        self.model, self.computing, self.temperature = model, computing, temperature
        self.value = value

    def forward(self, batch: AnswerBatch | HeldBatch) -> Loss:
        """Return the loss of answers; of those to prompts kept aside, minus their reward."""
        if isinstance(batch, HeldBatch):
            return _of_held(batch)
        with computing_in(self.computing, batch.ids.device):
            hidden, wanted = before_answers(self.model, batch.ids, batch.lengths, batch.sizes)
            likely = token_likelihoods(self.model, hidden, wanted, temperature=self.temperature)
            values = None if self.value is None else self.value(hidden)
        lost, figures = self.lost(batch, likely.log_probs, values)
        total = (lost * batch.weights.to(lost)).sum()
        figures = {"entropy": likely.entropies, **figures}
        found = {name: torch.tensor(value) for name, value in batch.figures.items()}
        found |= {name: _means(value, batch.sizes).sum() for name, value in figures.items()}
        if batch.reference is not None:
            found["kl"] = k3(likely.log_probs.detach(), batch.reference).sum()
        return Loss(total, torch.tensor(float(len(batch.sizes))), found)

    def lost(
        self, batch: AnswerBatch, log_probs: Tensor, values: Tensor | None
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Return the loss (M,) of each token, and figures of tokens (M,)."""
        raise NotImplementedError


def _means(values: Tensor, sizes: Sequence[int]) -> Tensor:
    """Return the mean of each answer's tokens, (S,)."""
    counts = torch.tensor(list(sizes), device=values.device).clamp(min=1)
    return per_answer(values.detach().float(), sizes) / counts


def _of_held(batch: HeldBatch) -> Loss:
    figures = {name: torch.tensor(value) for name, value in batch.figures.items()}
    weight = torch.tensor(float(batch.answers))
    return Loss(-figures["reward"], weight, figures)


def draw_curves(folder: Path) -> None:
    """Draw how reward, KL and length went over a run's steps, a picture each."""
    from glmkit.training.plots import draw
    from glmkit.training.state import TrainerState

    history = TrainerState.read(folder).log_history
    for name, label in _CURVES.items():
        shown = [name, *sorted({key for line in history for key in line if _beside(key, name)})]
        curves = {
            each: [(line["step"], line[each]) for line in history if each in line] for each in shown
        }
        if any(curves.values()):
            file = folder / f"training_{name}.png"
            draw(curves, file, title=f"{folder.absolute().name}: {name}", label=label)


_CURVES = {
    "reward": "reward of an answer",
    "kl": "KL from the first model (nats an answer)",
    "length": "tokens of an answer",
}


def _beside(key: str, name: str) -> bool:
    return key == f"eval_{name}" or (name == "reward" and key.startswith("reward_"))
