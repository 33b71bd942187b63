"""PPO: a value head says what answers will be worth; what is better is reinforced.

The formulas are in `objectives.py`.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from glmkit import CheckpointError

from .experience import AnswerBatch, Experience
from .gathering import gathered, over_all, rank
from .heads import VALUE, worth
from .objectives import (
    AdaptivePenalty,
    gae,
    penalised,
    per_answer,
    surrogate,
    value_losses,
    whitened,
)
from .online_task import OnlineTask, PolicyLearner, weights_of
from .writing import Answered, Known

if TYPE_CHECKING:
    from glmkit.training.below import CausalModel, LocalModel
    from glmkit.training.tuning import Tuning

    from .judging import Judging
    from .ppo import PpoConfig
    from .rewards import Weighted

PENALTIES = "kl_coef.jsonl"
"""In the run folder: how much the divergence counts in each round, where that adapts itself."""


class PpoTask(OnlineTask):
    """Proximal policy optimization.

    :param tuning: with a value head; see `heads.py`.
    """

    config: PpoConfig

    def __init__(
        self,
        config: PpoConfig,
        tuning: Tuning,
        rewards: Sequence[Weighted],
        judging: Judging | None = None,
    ) -> None:
        super().__init__(config, tuning, rewards, judging=judging)
        self._penalties = Penalties(config, Path(config.output).expanduser() / PENALTIES)

    @property
    def compares(self) -> bool:
        """Whether the divergence from the first model counts."""
        return self.config.kl_coef > 0

    @property
    def asks_policy(self) -> bool:
        """Always: rewards and values are those of the policy that wrote the answers."""
        return True

    def weigh(self, sizes: Sequence[int]) -> Tensor:
        """Return the weights (M,) of tokens: all alike."""
        return weights_of(sizes, "bnpo", longest=1)

    def credit(
        self, answered: Sequence[Answered], known: Sequence[Known], number: int
    ) -> list[Experience]:
        """Estimate advantages and returns of all tokens of a round."""
        config = self.config
        sizes = [len(each.written.ids) for each in answered]
        log_probs = _joined([each.log_probs for each in known])
        values = _joined([each.values for each in known])
        first = _joined([each.reference for each in known]) if self.compares else log_probs
        penalty = self._penalties.of(number)
        rewards = penalised(self._scores(answered), log_probs, first, sizes, penalty)
        if config.whiten_rewards:
            rewards = over_all(partial(whitened, shift=False), rewards)
        advantages, returns = gae(rewards, values, sizes, gamma=config.gamma, lam=config.lam)
        if config.whiten_advantages:
            advantages = over_all(whitened, advantages)
        divergence = float(per_answer(log_probs - first, sizes).mean())
        self._penalties.note(number, divergence, len(answered))
        parted = [torch.split(each.float(), sizes) for each in (advantages, returns)]
        return [
            _experience(answered[at], known[at], parted[0][at], parted[1][at], penalty)
            for at in range(len(answered))
        ]

    def _scores(self, answered: Sequence[Answered]) -> Tensor:
        """Return what answers are worth, (S,), less what one costs that was cut."""
        lack = self.config.missing_eos_penalty
        return torch.tensor([each.reward - lack * (not each.written.ended) for each in answered])

    def policy(self, local: LocalModel, computing: torch.dtype | None) -> PolicyLearner:
        """Return what gives the loss of PPO."""
        return PpoLearner(local.model, self.config, computing=computing)


def _joined(parts: Sequence[Tensor | None]) -> Tensor:
    return torch.cat([each for each in parts if each is not None])


def _experience(
    each: Answered, known: Known, advantages: Tensor, returns: Tensor, penalty: float
) -> Experience:
    return Experience(
        torch.tensor([*each.question.ids, *each.written.ids]),
        len(each.written.ids),
        advantages,
        known.log_probs,
        known.reference,
        known.values,
        returns,
        {**each.figures, "kl_coef": penalty},
    )


class PpoLearner(PolicyLearner):
    """A causal model that is asked for the loss of PPO."""

    def __init__(
        self, model: CausalModel, config: PpoConfig, *, computing: torch.dtype | None = None
    ) -> None:
        super().__init__(
            model,
            computing=computing,
            temperature=config.temperature,
            value=lambda hidden: worth(model, hidden, VALUE),
        )
        self.config = config

    def lost(
        self, batch: AnswerBatch, log_probs: Tensor, values: Tensor | None
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Return the clipped surrogate with the loss of the value head."""
        config = self.config
        old, before, returns = _known(batch.old), _known(batch.values), _known(batch.returns)
        acted = surrogate(log_probs - old, batch.advantages, low=config.epsilon)
        said = value_losses(_known(values), before, returns, clip=config.value_clip)
        figures = {"clipped": acted.clipped, "value_loss": said.losses}
        return acted.losses + config.vf_coef * said.losses, figures


def _known(value: Tensor | None) -> Tensor:
    if value is None:
        raise ValueError("PPO learns from log-probabilities, values and returns; one is missing")
    return value


class Penalties:
    """How much the divergence from the first model counts in each round.

    One that adapts itself is kept in a file, so that a run that is resumed goes on with it.
    """

    def __init__(self, config: PpoConfig, file: Path) -> None:
        self._adaptive: AdaptivePenalty | None = None
        if config.kl_target:
            self._adaptive = AdaptivePenalty(config.kl_coef, config.kl_target, config.kl_horizon)
        self._fixed, self._file, self._next = config.kl_coef, file, 0

    def of(self, number: int) -> float:
        """Return the penalty of a round, from 0.

        :raises CheckpointError: if the run is resumed and its file is damaged.
        """
        if self._adaptive is None:
            return self._fixed
        if number != self._next:
            self._adaptive.penalty = self._read(number)
            self._next = number
        return self._adaptive.penalty

    def note(self, number: int, divergence: float, answers: int) -> None:
        """Take note of what a round's answers diverged by, in nats each."""
        if self._adaptive is None:
            return
        found = gathered(divergence)  # of as many answers in each process
        self._adaptive.update(sum(found) / len(found), answers * len(found))
        self._next = number + 1
        if rank() == 0:
            line = json.dumps({"round": self._next, "kl_coef": self._adaptive.penalty})
            with self._file.open("a" if number else "w", encoding="utf-8") as file:
                file.write(line + "\n")

    def _read(self, number: int) -> float:
        """Return the latest that was written of a round; there may be some of steps taken back."""
        try:
            lines = map(json.loads, self._file.read_text(encoding="utf-8").splitlines())
            return [float(each["kl_coef"]) for each in lines if each["round"] == number][-1]
        except (OSError, ValueError, KeyError, TypeError, IndexError) as error:
            raise CheckpointError(
                f"{self._file} does not say how much the divergence counts in round {number}, so "
                "the run cannot be resumed; copy the file again, or begin anew: --overwrite"
            ) from error
