"""The recipe ``ppo``. No torch until it runs."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

from glmkit import Alias, StepLog, UsageError
from glmkit.training.configs import tuning_of

from .online import OnlineConfig, also, judge_of, rewards_of

if TYPE_CHECKING:
    from glmkit import Glmkit


@dataclass(frozen=True, kw_only=True)
class PpoConfig(OnlineConfig):
    """Settings of ``ppo``."""

    aliases: ClassVar[tuple[Alias, ...]] = (
        *OnlineConfig.aliases,
        *also("iterations", "num_ppo_epochs ppo_epochs"),
        *also("minibatches", "num_mini_batches"),
        *also("epsilon", "cliprange"),
        *also("value_clip", "cliprange_value"),
        *also("kl_coef", "init_kl_coef"),
        *also("kl_target", "ppo_target target_kl"),
        *also("kl_horizon", "horizon"),
        *also("whiten_rewards", "ppo_whiten_rewards"),
    )

    # --- PPO ---
    kl_coef: float = 0.05
    """How much the divergence from the first model is penalised in the reward; 0: not."""
    kl_target: float = 0.0
    """Let kl-coef adapt itself, so that answers diverge by so many nats; 0: it stays."""
    kl_horizon: float = 10000.0
    """Answers after which kl-coef has adapted."""
    epsilon: float = 0.2
    """How far a step goes on answers that an older policy wrote."""
    value_clip: float = 0.2
    """How far the value head goes in a round."""
    vf_coef: float = 0.1
    """How much the loss of the value head counts."""
    value_learning_rate: float | None = None
    """The learning rate of the value head, the highest; default: as the rest's."""
    gamma: float = 1.0
    """How much a later reward counts, for each token that it comes later."""
    lam: float = 0.95
    """Lambda of generalised advantage estimation: 1 trusts rewards, 0 the value head."""
    whiten_rewards: bool = False
    """Scale the rewards of tokens about their mean, to a standard deviation of 1."""
    whiten_advantages: bool = True
    """Shift and divide advantages to a mean of 0 and a standard deviation of 1."""
    missing_eos_penalty: float = 0.0
    """What is taken from the reward of an answer that the model did not end itself."""
    iterations: int = 4
    """Times that a round of answers is gone over before the next one is written."""

    def __post_init__(self) -> None:
        """Check the ranges."""
        super().__post_init__()
        names = ("kl_coef", "kl_target", "epsilon", "value_clip", "vf_coef", "missing_eos_penalty")
        for name in names:
            if not 0 <= getattr(self, name) < float("inf"):
                raise UsageError(f"{name} must be 0 or more, got {getattr(self, name)}")
        for name in ("gamma", "lam"):
            if not 0 <= getattr(self, name) <= 1:
                raise UsageError(f"{name} must be from 0 to 1, got {getattr(self, name)}")
        if not self.kl_horizon > 0:
            raise UsageError(f"kl_horizon must be above 0, got {self.kl_horizon}")
        if self.kl_target and not self.kl_coef:
            raise UsageError("kl_target adapts kl_coef, which is 0: give --kl-coef 0.2")


class Ppo:
    """Proximal policy optimization.

    :param app: whose plugins offer rewards; None: the installed ones.
    """

    config_type = PpoConfig

    def __init__(self, app: Glmkit | None = None) -> None:
        self._app = app

    def run(self, config: PpoConfig) -> Iterator[StepLog]:
        """Train on answers of the model itself.

        :raises BadStepError: if a reward is no number; the model is saved as it was before.
        """
        rewards = rewards_of(config, self._app)
        from glmkit.training.run import train

        from .heads import VALUE, Headed
        from .online_task import draw_curves
        from .ppo_task import PpoTask

        tuning = Headed(tuning_of(config, config.tuning), VALUE, rate=config.value_learning_rate)
        task = PpoTask(config, tuning, rewards, judge_of(config, self._app))
        yield from train(config, tuning, recipe="ppo", task=task)
        draw_curves(Path(config.output).expanduser())


ppo = Ppo()
