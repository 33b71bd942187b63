"""What recipes are told alike that learn from what people think of answers.

The docstring of an attribute is its flag's help.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar

from glmkit import Alias, UsageError
from glmkit.dataset.columns import ColumnNames
from glmkit.training.configs import LoraConfig, check_choice, refuse_half


@dataclass(frozen=True, kw_only=True)
class OpinionConfig(LoraConfig):
    """Settings of recipes that learn from pairs of answers, or from verdicts on answers."""

    aliases: ClassVar[tuple[Alias, ...]] = (
        Alias("finetuning_type", ("tuning",)),
        Alias("tuner_type", ("tuning",)),
    )

    # --- preferences ---
    chosen_column: str | None = None
    """The column of the better answer, where it is not detected."""
    rejected_column: str | None = None
    """The column of the worse answer, where it is not detected."""

    # --- what is trained ---
    quantize: str | None = None
    """Round the frozen weights: int4 or int8 (as qlora does); default: as they lie."""
    tuning: str = "lora"
    """lora, or full: all weights."""
    batch_size: int = 4
    """Pairs, or answers with a verdict, of one pass on one device."""

    def __post_init__(self) -> None:
        """Check the ranges."""
        super().__post_init__()
        check_choice("tuning", self.tuning, self.tunings)
        if self.tuning == "full":
            refuse_half(self)
        if self.quantize is not None:
            check_choice("quantize", self.quantize, ("int4", "int8"))
            if self.tuning == "full":
                raise UsageError("rounded weights cannot learn themselves; take --tuning lora")
        self._check_run()

    tunings: ClassVar[tuple[str, ...]] = ("lora", "full")
    """What of the model can be trained."""

    @property
    def columns(self) -> ColumnNames:
        """The columns that somebody named."""
        return ColumnNames(
            prompt=self.prompt_column,
            history=self.history_column,
            chosen=self.chosen_column,
            rejected=self.rejected_column,
        )

    def _check_run(self) -> None:
        if self.packing:
            raise UsageError(
                "packing fills rows with samples; the answers of a pass are a row already: leave "
                "it out"
            )
        if self.eval_generate:
            raise UsageError(
                "eval_generate compares answers with the one of a file, and here they are not what "
                "is learnt by heart: leave it out"
            )
        if self.sharded:
            raise UsageError(
                f"--parallel {self.parallel} spreads the model over processes, which this recipe "
                "cannot; leave it out: each process then has the whole model"
            )
        if self.neftune:
            raise UsageError("neftune is for learning answers by heart; leave it out")


@dataclass(frozen=True, kw_only=True)
class PairConfig(OpinionConfig):
    """Settings of recipes that learn from pairs of answers."""

    # --- preferences ---
    ranked: str = "all"
    """Of more than two ranked answers, compare all with each other, or only the best with the
    others: all, best."""

    def __post_init__(self) -> None:
        """Check the ranges."""
        super().__post_init__()
        check_choice("ranked", self.ranked, ("all", "best"))

    @property
    def columns(self) -> ColumnNames:
        """The columns that somebody named; that of the answers is that of the better ones."""
        return replace(super().columns, chosen=self.chosen_column or self.response_column)
