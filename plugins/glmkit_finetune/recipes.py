"""The recipes that glmkit brings: their settings, and what each trains of a model."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

from glmkit import StepLog, UsageError
from glmkit.training.config import TrainConfig
from glmkit.training.configs import FullConfig, LoraConfig, check_choice, lora_of, refuse_half


@dataclass(frozen=True, kw_only=True)
class QloraConfig(LoraConfig):
    """Settings of ``qlora``."""

    # --- LoRA ---
    quantize: str = "auto"
    """Bits of the frozen weights: int4 or int8; auto: as they lie, or int4."""

    def __post_init__(self) -> None:
        """Check the ranges."""
        super().__post_init__()
        check_choice("quantize", self.quantize, ("auto", "int4", "int8"))


@dataclass(frozen=True, kw_only=True)
class PtuningConfig(TrainConfig):
    """Settings of ``ptuning``."""

    # --- P-Tuning v2 ---
    pre_seq_len: int = 128
    """Entries of the prefix."""
    projection: bool = False
    """Learn the prefix through a small network."""
    quantize: str | None = None
    """Round the frozen weights: int4 or int8."""
    learning_rate: float = 2e-2
    """The highest."""

    def __post_init__(self) -> None:
        """Check the ranges."""
        super().__post_init__()
        if self.pre_seq_len < 1:
            raise UsageError(f"pre_seq_len must be 1 or more, got {self.pre_seq_len}")
        if self.quantize is not None:
            check_choice("quantize", self.quantize, ("int4", "int8"))


@dataclass(frozen=True, kw_only=True)
class FreezeConfig(TrainConfig):
    """Settings of ``freeze``."""

    # --- which layers ---
    layers: int = 2
    """How many are trained: the last ones; below 0: the first ones."""
    modules: tuple[str, ...] = ("all",)
    """What of them: all, or names such as mlp, self_attention or query_key_value."""
    extra_modules: tuple[str, ...] = ()
    """What is trained beside layers: embedding, norm, head."""
    learning_rate: float = 1e-5
    """The highest."""

    def __post_init__(self) -> None:
        """Check the ranges."""
        super().__post_init__()
        refuse_half(self)
        if not self.layers and not self.extra_modules:
            raise UsageError("layers is 0 and there are no extra_modules: nothing is trained")


class Lora:
    """LoRA, DoRA, rsLoRA, LoRA+, over plain or quantised weights."""

    config_type: type[LoraConfig] = LoraConfig
    name = "lora"

    def run(self, config: LoraConfig) -> Iterator[StepLog]:
        """Train small matrices beside linear layers."""
        from glmkit.training.run import train

        yield from train(config, lora_of(config), recipe=self.name)


class Qlora(Lora):
    """The same over weights of 4 or 8 bits."""

    config_type = QloraConfig
    name = "qlora"

    def run(self, config: LoraConfig) -> Iterator[StepLog]:
        """Train small matrices beside quantised linear layers."""
        from glmkit.training.tunings.lora import lying

        if isinstance(config, QloraConfig) and config.quantize == "auto":
            config = replace(config, quantize=lying(Path(config.model), config.family) or "int4")
        yield from super().run(config)


class Ptuning:
    """P-Tuning v2."""

    config_type = PtuningConfig

    def run(self, config: PtuningConfig) -> Iterator[StepLog]:
        """Train a prefix."""
        from glmkit.training.run import train
        from glmkit.training.tunings.prefix import PrefixTuning

        tuning = PrefixTuning(
            Path(config.model), length=config.pre_seq_len, projection=config.projection
        )
        yield from train(config, tuning, recipe="ptuning")


class Full:
    """All weights."""

    config_type = FullConfig

    def run(self, config: FullConfig) -> Iterator[StepLog]:
        """Train all weights."""
        from glmkit.training.run import train
        from glmkit.training.tunings.whole import WholeTuning

        tuning = WholeTuning(Path(config.model), family=config.family)
        yield from train(config, tuning, recipe="full")


class Freeze:
    """The last layers."""

    config_type = FreezeConfig

    def run(self, config: FreezeConfig) -> Iterator[StepLog]:
        """Train some layers."""
        from glmkit.training.run import train
        from glmkit.training.tunings.whole import Part, WholeTuning

        part = Part(config.layers, config.modules, config.extra_modules)
        tuning = WholeTuning(Path(config.model), part, family=config.family)
        yield from train(config, tuning, recipe="freeze")


lora, qlora, ptuning, full, freeze = Lora(), Qlora(), Ptuning(), Full(), Freeze()
