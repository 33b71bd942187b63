"""The recipe ``dpo``. No torch until it runs."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar, Literal, get_args

from glmkit import Alias, StepLog, UsageError
from glmkit.training.configs import check_choice, tuning_of

from .opinions import PairConfig

DpoKind = Literal["sigmoid", "sigmoid_norm", "hinge", "ipo", "ipo_sum", "robust"]
KINDS: tuple[DpoKind, ...] = get_args(DpoKind)
FreeKind = Literal["simpo", "orpo"]
FREE: tuple[FreeKind, ...] = get_args(FreeKind)
"""Those that compare with no first model."""


@dataclass(frozen=True, kw_only=True)
class DpoConfig(PairConfig):
    """Settings of ``dpo``."""

    aliases: ClassVar[tuple[Alias, ...]] = (
        *PairConfig.aliases,
        *(Alias(each, ("loss",)) for each in ("pref_loss", "loss_type")),
        Alias("pref_beta", ("beta",)),
        Alias("simpo_gamma", ("gamma",)),
        *(Alias(each, ("smoothing",)) for each in ("label_smoothing", "dpo_label_smoothing")),
        *(Alias(each, ("sft",)) for each in ("pref_ftx", "rpo_alpha")),
    )

    # --- DPO ---
    beta: float = 0.1
    """How near to the first model it stays: larger is nearer."""
    loss: str = "sigmoid"
    """sigmoid, sigmoid_norm (means over tokens), hinge, ipo (means over tokens, as TRL has it),
    ipo_sum (as published) or robust; simpo and orpo compare with no first model."""
    smoothing: float = 0.0
    """The share of pairs that are labelled the wrong way round (sigmoid, robust)."""
    gamma: float = 0.5
    """What beta times the difference should come to (simpo)."""
    sft: float = 0.0
    """How much the mean loss of the better answer's tokens counts beside (RPO)."""
    learning_rate: float = 5e-6
    """The highest."""

    def __post_init__(self) -> None:
        """Check the ranges."""
        super().__post_init__()
        check_choice("loss", self.loss, (*KINDS, *FREE))
        if not 0 < self.beta < float("inf"):
            raise UsageError(f"beta must be above 0, got {self.beta}")
        if not 0 <= self.smoothing < 0.5:
            raise UsageError(f"smoothing must be from 0 to below 0.5, got {self.smoothing}")
        if self.smoothing and self.loss not in ("sigmoid", "sigmoid_norm", "robust"):
            raise UsageError(f"the loss {self.loss!r} knows no smoothing; take sigmoid or robust")
        for name in ("gamma", "sft"):
            if not 0 <= getattr(self, name) < float("inf"):
                raise UsageError(f"{name} must be 0 or more, got {getattr(self, name)}")


class Dpo:
    """Direct preference optimization."""

    config_type = DpoConfig

    def run(self, config: DpoConfig) -> Iterator[StepLog]:
        """Train a model to find the better answer of a pair likelier than it did."""
        from glmkit.training.run import train

        from .dpo_task import DpoTask

        tuning = tuning_of(config, config.tuning)
        yield from train(config, tuning, recipe="dpo", task=DpoTask(config, tuning))


dpo = Dpo()
