"""The recipe: its settings, and which parameters it trains. No torch until it runs."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from glmkit import StepLog, UsageError
from glmkit.training.config import TrainConfig

if TYPE_CHECKING:
    from glmkit.models.causal import CausalModel


@dataclass(frozen=True, kw_only=True)
class BitfitConfig(TrainConfig):
    """Settings of ``bitfit``."""

    # --- BitFit ---
    norms: bool = True
    """Train the norms, too; some models have few biases, or none."""
    learning_rate: float = 1e-3
    """The highest."""


class Bitfit:
    """Trains biases and norms."""

    config_type = BitfitConfig

    def run(self, config: BitfitConfig) -> Iterator[StepLog]:
        """Train; the result is a model that ``--model`` takes."""
        from glmkit.training.run import train
        from glmkit.training.tunings.whole import WholeTuning, everything

        def chosen(model: CausalModel) -> list[str]:
            endings = (".bias", "norm.weight") if config.norms else (".bias",)
            found = [name for name in everything(model) if name.endswith(endings)]
            if not found:
                raise UsageError("this model has no biases; leave out --no-norms")
            return found

        tuning = WholeTuning(Path(config.model), chosen, family=config.family)
        yield from train(config, tuning, recipe="bitfit")


recipe = Bitfit()
