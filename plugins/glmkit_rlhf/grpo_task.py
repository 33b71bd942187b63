"""GRPO: several answers to each prompt, each compared with the others; see `objectives.py`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, cast

import torch
from torch import Tensor

from .experience import AnswerBatch, Experience
from .gathering import over_all
from .grpo import LossKind, Scale
from .objectives import group_advantages, k3, of_sequences, surrogate
from .online_task import OnlineTask, PolicyLearner, weights_of
from .writing import Answered, Known

if TYPE_CHECKING:
    from glmkit.training.below import CausalModel, LocalModel
    from glmkit.training.tuning import Tuning

    from .grpo import GrpoConfig
    from .judging import Judging
    from .rewards import Weighted


class GrpoTask(OnlineTask):
    """Group-relative policy optimization."""

    config: GrpoConfig

    def __init__(
        self,
        config: GrpoConfig,
        tuning: Tuning,
        rewards: Sequence[Weighted],
        judging: Judging | None = None,
    ) -> None:
        super().__init__(config, tuning, rewards, generations=config.generations, judging=judging)

    @property
    def compares(self) -> bool:
        """Whether the divergence from the first model counts."""
        return self.config.beta > 0

    @property
    def asks_policy(self) -> bool:
        """Whether steps are made on answers that an older policy wrote."""
        return self.rounds.steps > 1

    def weigh(self, sizes: Sequence[int]) -> Tensor:
        """Return the weights (M,) that the variant of the loss gives tokens."""
        kind = cast(LossKind, self.config.loss)
        return weights_of(sizes, kind, longest=self.config.max_new_tokens)

    def credit(
        self, answered: Sequence[Answered], known: Sequence[Known], number: int
    ) -> list[Experience]:
        """Give all tokens of an answer the advantage that it has over the others of its group."""
        rewards = torch.tensor([each.reward for each in answered], dtype=torch.float64)
        groups = rewards.view(-1, self.generations)
        scale = cast(Scale, self.config.scale_rewards)
        advantages = over_all(lambda each: group_advantages(each, scale), groups)
        spread = groups.std(-1, correction=0).repeat_interleave(self.generations).tolist()
        return [
            _experience(each, own, float(advantage), deviation)
            for each, own, advantage, deviation in zip(
                answered, known, advantages.flatten(), spread, strict=True
            )
        ]

    def policy(self, local: LocalModel, computing: torch.dtype | None) -> PolicyLearner:
        """Return what gives the loss of GRPO."""
        return GrpoLearner(local.model, self.config, computing=computing)


def _experience(each: Answered, known: Known, advantage: float, spread: float) -> Experience:
    size = len(each.written.ids)
    return Experience(
        torch.tensor([*each.question.ids, *each.written.ids]),
        size,
        torch.full((size,), advantage),
        known.log_probs,
        known.reference,
        figures={**each.figures, "reward_std": spread},
    )


class GrpoLearner(PolicyLearner):
    """A causal model that is asked for the loss of GRPO."""

    def __init__(
        self, model: CausalModel, config: GrpoConfig, *, computing: torch.dtype | None = None
    ) -> None:
        super().__init__(model, computing=computing, temperature=config.temperature)
        self.config = config

    def lost(
        self, batch: AnswerBatch, log_probs: Tensor, values: Tensor | None
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Return the clipped surrogate with the divergence from the first model."""
        config = self.config
        log_ratio = log_probs - (log_probs.detach() if batch.old is None else batch.old)
        if config.importance == "sequence":
            log_ratio = of_sequences(log_ratio, log_probs, batch.sizes)
        high = config.epsilon if config.epsilon_high is None else config.epsilon_high
        found = surrogate(log_ratio, batch.advantages, low=config.epsilon, high=high)
        lost = found.losses
        if config.beta and batch.reference is not None:
            lost = lost + config.beta * k3(log_probs, batch.reference)
        return lost, {"clipped": found.clipped}
