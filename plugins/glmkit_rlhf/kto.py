"""The recipe ``kto``. No torch until it runs."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import ClassVar

from glmkit import Alias, StepLog, UsageError
from glmkit.dataset.columns import ColumnNames
from glmkit.training.configs import check_choice, tuning_of

from .opinions import OpinionConfig

KINDS = ("kto", "apo_zero_unpaired")


@dataclass(frozen=True, kw_only=True)
class KtoConfig(OpinionConfig):
    """Settings of ``kto``."""

    aliases: ClassVar[tuple[Alias, ...]] = (
        *OpinionConfig.aliases,
        Alias("loss_type", ("loss",)),
        *(Alias(each, ("beta",)) for each in ("pref_beta", "kto_beta")),
        Alias("kto_chosen_weight", ("desirable_weight",)),
        Alias("kto_rejected_weight", ("undesirable_weight",)),
    )

    # --- preferences ---
    label_column: str | None = None
    """The column of verdicts, true or false, where it is not detected."""

    # --- KTO ---
    beta: float = 0.1
    """How near to the first model it stays: larger is nearer."""
    loss: str = "kto"
    """kto, or apo_zero_unpaired, which measures no divergence."""
    desirable_weight: float = 1.0
    """How much a good answer counts."""
    undesirable_weight: float = 1.0
    """How much another answer counts."""
    learning_rate: float = 5e-6
    """The highest."""

    def __post_init__(self) -> None:
        """Check the ranges."""
        super().__post_init__()
        check_choice("loss", self.loss, KINDS)
        if not 0 < self.beta < float("inf"):
            raise UsageError(f"beta must be above 0, got {self.beta}")
        for name in ("desirable_weight", "undesirable_weight"):
            if not 0 <= getattr(self, name) < float("inf"):
                raise UsageError(f"{name} must be 0 or more, got {getattr(self, name)}")
        if not self.desirable_weight and not self.undesirable_weight:
            raise UsageError("desirable_weight and undesirable_weight are 0: nothing is learnt")

    @property
    def columns(self) -> ColumnNames:
        """The columns that somebody named."""
        return replace(super().columns, response=self.response_column, label=self.label_column)


class Kto:
    """Kahneman-Tversky optimization."""

    config_type = KtoConfig

    def run(self, config: KtoConfig) -> Iterator[StepLog]:
        """Train a model to find good answers likelier than it did, and the others less likely."""
        from glmkit.training.run import train

        from .kto_task import KtoTask

        tuning = tuning_of(config, config.tuning)
        yield from train(config, tuning, recipe="kto", task=KtoTask(config, tuning))


kto = Kto()
