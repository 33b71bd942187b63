"""Settings that several recipes share: of LoRA, and of training all weights. Light: no torch."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from ..errors import UsageError
from .config import TrainConfig

if TYPE_CHECKING:
    from .tuning import Tuning
    from .tunings.lora import LoraTuning


@dataclass(frozen=True, kw_only=True)
class LoraConfig(TrainConfig):
    """Settings of ``lora``."""

    # --- LoRA ---
    rank: int = 8
    """Of the small matrices."""
    alpha: float = 16
    """What they add is multiplied by alpha / rank."""
    dropout: float = 0.0
    """Share of their inputs that is left out at random."""
    targets: tuple[str, ...] = ("all",)
    """Which linears get them: all, or names such as query_key_value, dense or q_proj; q_proj,
    k_proj and v_proj are one matrix here, which is trained as a whole."""
    dora: bool = False
    """Learn the length of each row of the matrices, too (DoRA)."""
    rslora: bool = False
    """Multiply by alpha / sqrt(rank) instead (rsLoRA)."""
    loraplus: float = 1.0
    """Times that B learns as fast as A (LoRA+, 16 for example)."""
    init: str = "default"
    """How A begins: default, gaussian, orthogonal."""

    def __post_init__(self) -> None:
        """Check the ranges."""
        super().__post_init__()
        if self.rank < 1:
            raise UsageError(f"rank must be 1 or more, got {self.rank}")
        if not self.alpha > 0:
            raise UsageError(f"alpha must be above 0, got {self.alpha}")
        if not 0 <= self.dropout < 1:
            raise UsageError(f"dropout must be from 0 to below 1, got {self.dropout}")
        if not self.loraplus > 0:
            raise UsageError(f"loraplus must be above 0, got {self.loraplus}")
        check_choice("init", self.init, ("default", "gaussian", "orthogonal"))


@dataclass(frozen=True, kw_only=True)
class FullConfig(TrainConfig):
    """Settings of ``full``."""

    learning_rate: float = 1e-5
    """The highest."""

    def __post_init__(self) -> None:
        """Check the ranges."""
        super().__post_init__()
        refuse_half(self)


def check_choice(name: str, value: str, allowed: tuple[str, ...]) -> None:
    """See that a setting is one of those allowed.

    :raises UsageError: if it is not.
    """
    if value not in allowed:
        raise UsageError(f"{name} must be one of {', '.join(allowed)}, got {value!r}")


def refuse_half(config: TrainConfig) -> None:
    """Refuse to train weights that lie in float16.

    :raises UsageError: if the configuration asks for that.
    """
    if config.dtype == "float16":
        raise UsageError(
            "weights in float16 cannot be trained themselves: their steps are lost to rounding; "
            "give --dtype bfloat16, which keeps what is trained in float32, or take the recipe lora"
        )


def lora_of(config: LoraConfig) -> LoraTuning:
    """Return the tuning that a configuration describes."""
    from .tunings.lora import LoraTuning

    return LoraTuning(
        Path(config.model),
        rank=config.rank,
        alpha=config.alpha,
        dropout=config.dropout,
        targets=config.targets,
        dora=config.dora,
        rslora=config.rslora,
        ratio=config.loraplus,
        init=config.init,
        family=config.family,
    )


def tuning_of(config: LoraConfig, tuning: str) -> Tuning:
    """Return what a configuration trains where it can be told: ``lora``, or ``full``."""
    if tuning == "lora":
        return lora_of(config)
    from .tunings.whole import WholeTuning

    return WholeTuning(Path(config.model), family=config.family)
