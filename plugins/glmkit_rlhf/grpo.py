"""The recipe ``grpo``. No torch until it runs."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar, Literal, get_args

from glmkit import Alias, StepLog, UsageError
from glmkit.training.configs import check_choice, tuning_of

from .online import OnlineConfig, also, judge_of, rewards_of

if TYPE_CHECKING:
    from glmkit import Glmkit

LossKind = Literal["grpo", "bnpo", "dr_grpo", "dapo"]
Scale = Literal["group", "batch", "none"]
Importance = Literal["token", "sequence"]


@dataclass(frozen=True, kw_only=True)
class GrpoConfig(OnlineConfig):
    """Settings of ``grpo``."""

    aliases: ClassVar[tuple[Alias, ...]] = (
        *OnlineConfig.aliases,
        *also("generations", "num_generations"),
        *also("iterations", "num_iterations"),
        *also("minibatches", "num_mini_batches"),
        *also("loss", "loss_type"),
        *also("epsilon", "epsilon_low"),
        *also("importance", "importance_sampling_level"),
    )

    # --- GRPO ---
    generations: int = 8
    """Answers to each prompt, which are compared with each other."""
    loss: str = "dapo"
    """How tokens count: dapo or bnpo (all alike), grpo (answers alike), dr_grpo (by the longest
    answer that there may be)."""
    scale_rewards: str = "group"
    """Divide rewards by the standard deviation of the group, of the batch, or by none."""
    beta: float = 0.0
    """How much the divergence from the first model counts; 0: not."""
    epsilon: float = 0.2
    """How far a step goes on answers that an older policy wrote."""
    epsilon_high: float | None = None
    """The same upwards (DAPO: 0.28); default: as epsilon."""
    importance: str = "token"
    """Compare policies by each token, or by the whole sequence (GSPO)."""

    def __post_init__(self) -> None:
        """Check the ranges."""
        super().__post_init__()
        check_choice("loss", self.loss, get_args(LossKind))
        check_choice("scale_rewards", self.scale_rewards, get_args(Scale))
        check_choice("importance", self.importance, get_args(Importance))
        if self.generations < 2:
            raise UsageError(
                f"generations must be 2 or more, got {self.generations}: answers are compared with "
                "the others to their prompt"
            )
        for name in ("beta", "epsilon", "epsilon_high"):
            value = getattr(self, name)
            if value is not None and not 0 <= value < float("inf"):
                raise UsageError(f"{name} must be 0 or more, got {value}")


class Grpo:
    """Group-relative policy optimization.

    :param app: whose plugins offer rewards; None: the installed ones.
    """

    config_type = GrpoConfig

    def __init__(self, app: Glmkit | None = None) -> None:
        self._app = app

    def run(self, config: GrpoConfig) -> Iterator[StepLog]:
        """Train on answers of the model itself.

        :raises BadStepError: if a reward is no number; the model is saved as it was before.
        """
        rewards = rewards_of(config, self._app)
        from glmkit.training.run import train

        from .grpo_task import GrpoTask
        from .online_task import draw_curves

        tuning = tuning_of(config, config.tuning)
        task = GrpoTask(config, tuning, rewards, judge_of(config, self._app))
        yield from train(config, tuning, recipe="grpo", task=task)
        draw_curves(Path(config.output).expanduser())


grpo = Grpo()
