"""Reward models: which of two answers is better, by the Bradley-Terry model.

Letters: S pairs.
"""

from __future__ import annotations

import shlex
from collections.abc import Generator
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from glmkit.training.attention import placed
from glmkit.training.below import Fingerprint, weight_files
from glmkit.training.learner import Loss, computing_in

from .heads import head_of, pooled
from .losses import bradley_terry
from .pairs import PairBatch, taken_in
from .remembered import Remembered, bytes_of
from .rows import Row

if TYPE_CHECKING:
    from glmkit import StepLog
    from glmkit.training.below import CausalModel, LocalModel
    from glmkit.training.config import TrainConfig
    from glmkit.training.intake import Intake

    from .reward import RewardConfig

KEPT = "heads.db"
"""In the cache: what models say of pairs while only a head learns."""


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
        kept = self._kept(local, computing) if still and self.config.cache else None
        return RewardLearner(
            local.model,
            centering=self.config.centering,
            computing=computing,
            still=still,
            kept=kept,
        )

    def _kept(self, local: LocalModel, computing: torch.dtype | None) -> Remembered:
        """Return what keeps the numbers that the head reads, for other runs."""
        config, like = self.config, local.model.like
        base = _told_apart(Path(config.model))
        about = (base, config.quantize, like.dtype, like.device.type, computing, config.pooling)
        return Remembered(Path(str(config.cache)).expanduser() / KEPT, *about)


def _told_apart(folder: Path) -> tuple[Fingerprint, bytes]:
    """Return what no two models have in common, whatever they are called."""
    base = replace(Fingerprint.of(folder), name="")
    # Of rounded matrices a fingerprint says nothing.
    return base, b"" if base.matrices else bytes_of(weight_files(folder)[0])


class RewardLearner(nn.Module):
    """A model with a head, asked for its loss of pairs.

    :param model: with a head; whatever of it requires gradients is trained.
    :param computing: see :class:`glmkit.training.learner.Learner`.
    :param still: only the head learns: what it reads of a pair never changes, and is worked out
        when the pair is first seen, of each pair alone, so that a resumed run gets the same.
    :param kept: keeps that on disk, too.
    """

    def __init__(
        self,
        model: CausalModel,
        *,
        centering: float = 0.0,
        computing: torch.dtype | None = None,
        still: bool = False,
        kept: Remembered | None = None,
    ) -> None:
        super().__init__()
        self.model, self.centering, self.computing = model, centering, computing
        self.kept = kept
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
                self.known[key] = self._asked(batch.alone(at))
        return torch.cat([self.known[key] for key in batch.keys])

    def _asked(self, pair: Row) -> Tensor:
        """Return what the head reads of one pair, (2, H), from disk where it lies there."""
        kept = self.kept
        found = None if kept is None else kept.get(pair.ids, (*pair.lengths, *pair.sizes))
        if found is None:
            with torch.inference_mode():  # as it is read when it is scored
                found = self._pooled(pair)
            if kept is not None:
                kept.put(pair.ids, (*pair.lengths, *pair.sizes), found)
        return found.clone()  # outside, so that gradients may ask for it

    def _pooled(self, batch: Row) -> Tensor:
        positions, blocks = placed(self.model, batch.ids, batch.lengths)
        hidden = self.model.hidden(batch.ids[None], positions, past=blocks)[0]
        pooling = head_of(self.model).pooling
        return pooled(self.model.norm(hidden), batch.lengths, batch.sizes, pooling)
