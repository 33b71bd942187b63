"""The recipe ``reward``. No torch until it runs."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar

from glmkit import Alias, StepLog, UsageError
from glmkit.training.configs import check_choice, tuning_of

from .opinions import PairConfig


@dataclass(frozen=True, kw_only=True)
class RewardConfig(PairConfig):
    """Settings of ``reward``."""

    aliases: ClassVar[tuple[Alias, ...]] = (
        *PairConfig.aliases,
        Alias("center_rewards_coefficient", ("centering",)),
    )
    tunings: ClassVar[tuple[str, ...]] = ("lora", "full", "head")

    # --- reward model ---
    centering: float = 0.0
    """How much the mean reward of both answers is drawn to 0 (0.01 for example)."""
    pooling: str = "last"
    """What the head reads: the last token, or the mean over the answer's tokens: last, mean."""
    head_rate: float | None = None
    """The learning rate of the head; default: as learning-rate."""

    # --- what is trained ---
    tuning: str = "lora"
    """lora; full: all weights; head: only the head, and the model stays as it is."""

    def __post_init__(self) -> None:
        """Check the ranges."""
        super().__post_init__()
        check_choice("pooling", self.pooling, ("last", "mean"))
        if not 0 <= self.centering < float("inf"):
            raise UsageError(f"centering must be 0 or more, got {self.centering}")
        if self.head_rate is not None and not 0 < self.head_rate < float("inf"):
            raise UsageError(f"head_rate must be above 0, got {self.head_rate}")


class Reward:
    """A reward model: one number for an answer, higher for better ones."""

    config_type = RewardConfig

    def run(self, config: RewardConfig) -> Iterator[StepLog]:
        """Train a model, and a head on it, to tell the better answer of a pair."""
        from pathlib import Path

        from glmkit.training.run import train

        from .heads import Headed, HeadOnly
        from .reward_task import RewardTask

        inner = (
            HeadOnly(Path(config.model))
            if config.tuning == "head"
            else tuning_of(config, config.tuning)
        )
        tuning = Headed(inner, rate=config.head_rate, pooling=config.pooling)
        yield from train(config, tuning, recipe="reward", task=RewardTask(config))


reward = Reward()
