"""Reward models: which of two answers is better, by the Bradley-Terry model.

Letters: S pairs.
"""

from __future__ import annotations

import shlex
from collections.abc import Generator
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from glmkit.training.attention import placed
from glmkit.training.learner import Loss, computing_in

from .heads import head_of, pooled
from .losses import bradley_terry
from .pairs import PairBatch, taken_in

if TYPE_CHECKING:
    from glmkit import StepLog
    from glmkit.training.below import CausalModel, LocalModel
    from glmkit.training.config import TrainConfig
    from glmkit.training.intake import Intake

    from .reward import RewardConfig


class RewardTask:
    """Learn to tell the better answer of a pair."""

    drawn: tuple[str, ...] = ("loss", "eval_loss", "accuracy", "eval_accuracy", "margin")
    unit = "loss of a pair (nats), share of pairs told right, margin"
    per_token = False

    def __init__(self, config: RewardConfig) -> None:
        self.config = config

    @property
    def uses(self) -> tuple[str, ...]:
        """The commands for what it leaves: it says what answers are worth, and writes none."""
        folder = shlex.quote(str(Path(self.config.output).expanduser()))
        return (
            f"glmkit reward score answers.jsonl --reward {folder}",
            f"glmkit finetune ppo --data prompts.jsonl --reward-model {folder} --output better",
        )

    def taken_in(self, config: TrainConfig, world: int) -> Generator[StepLog, None, Intake]:
        """Read and tokenise preferences."""
        return (yield from taken_in(self.config, world))

    def learner(
        self, config: TrainConfig, local: LocalModel, computing: torch.dtype | None
    ) -> RewardLearner:
        """Return the model's loss of pairs."""
        still = self.config.tuning == "head"
        return RewardLearner(
            local.model, centering=self.config.centering, computing=computing, still=still
        )


class RewardLearner(nn.Module):
    """A model with a head, asked for its loss of pairs.

    :param model: with a head; whatever of it requires gradients is trained.
    :param computing: see :class:`glmkit.training.learner.Learner`.
    :param still: only the head learns: what it reads of a pair never changes, and is worked out
        when the pair is first seen, of each pair alone, so that a resumed run gets the same.
    """

    def __init__(
        self,
        model: CausalModel,
        *,
        centering: float = 0.0,
        computing: torch.dtype | None = None,
        still: bool = False,
    ) -> None:
        super().__init__()
        self.model, self.centering, self.computing = model, centering, computing
        self.known: dict[int, Tensor] | None = {} if still else None
        """What the head reads of pairs, (2, H) each, by their keys."""

    def forward(self, batch: PairBatch) -> Loss:
        """Return the Bradley-Terry loss, each pair times its share, and what it comes from."""
        with computing_in(self.computing, batch.ids.device):
            rewards = self.rewards(batch)
        chosen, rejected = rewards[::2], rewards[1::2]
        shares = batch.shares.to(rewards)
        margins = batch.margins.to(rewards)
        lost = bradley_terry(chosen, rejected, margins, centering=self.centering)
        told = {
            "accuracy": (chosen > rejected).to(rewards),
            "margin": chosen - rejected,
            "chosen_reward": chosen,
            "rejected_reward": rejected,
        }
        figures = {name: (each.detach() * shares).sum() for name, each in told.items()}
        return Loss((lost * shares).sum(), shares.sum(), figures)

    def rewards(self, batch: PairBatch) -> Tensor:
        """Return what each answer is worth, (2S,): better, worse, better, worse, ..."""
        found: Tensor = head_of(self.model)(self._read(batch))
        return found

    def _read(self, batch: PairBatch) -> Tensor:
        """Return what the head reads, (2S, H)."""
        if self.known is None:
            return self._pooled(batch)
        for at, key in enumerate(batch.keys):
            if key not in self.known:
                with torch.inference_mode():  # as it is read when it is scored
                    found = self._pooled(batch.alone(at))
                self.known[key] = found.clone()  # outside, so that gradients may ask for it
        return torch.cat([self.known[key] for key in batch.keys])

    def _pooled(self, batch: PairBatch) -> Tensor:
        positions, blocks = placed(self.model, batch.ids, batch.lengths)
        hidden = self.model.hidden(batch.ids[None], positions, past=blocks)[0]
        pooling = head_of(self.model).pooling
        return pooled(self.model.norm(hidden), batch.lengths, batch.sizes, pooling)
