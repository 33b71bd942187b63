"""DeepSpeed's configuration: generated, the user's own, or what accelerate's launcher was told."""

from __future__ import annotations

import json
import logging
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from ..errors import ConfigError
from ..runtime.parting import PARTED, Parting
from .config import TrainConfig
from .processes import Launched

if TYPE_CHECKING:
    from accelerate import DeepSpeedPlugin

log = logging.getLogger(__name__)

_OURS = ("optimizer", "scheduler")
"""Sections that are glmkit's own to decide."""


def zero_plugin(config: TrainConfig, launched: Launched) -> DeepSpeedPlugin:
    """Return accelerate's description of what is wanted.

    :raises ConfigError: if it is none.
    """
    from accelerate import DeepSpeedPlugin

    try:
        if launched.deepspeed:
            plugin = DeepSpeedPlugin()
        else:
            plugin = DeepSpeedPlugin(hf_ds_config=asked(config))
    except ValueError as error:
        raise ConfigError(f"DeepSpeed's configuration: {error}") from error
    if not plugin.zero_stage:
        raise ConfigError(
            "DeepSpeed's configuration says stage 0, which parts nothing; take --parallel ddp, or "
            "set zero_optimization.stage to 1, 2 or 3"
        )
    return plugin


def asked(config: TrainConfig) -> dict[str, Any]:
    """Return the user's own configuration, else the generated one; "auto" is not filled in yet.

    :raises ConfigError: if the user's file is none.
    """
    return _own(config) or generated(config)


def _own(config: TrainConfig) -> dict[str, Any] | None:
    """Read the user's own file."""
    if config.deepspeed is None:
        return None
    file = Path(config.deepspeed).expanduser()
    try:
        raw = json.loads(file.read_text("utf-8"))
    except (OSError, ValueError) as error:
        raise ConfigError(f"--deepspeed {str(file)!r} cannot be read as JSON: {error}") from error
    if not isinstance(raw, dict):
        raise ConfigError(f"--deepspeed {str(file)!r} must hold one JSON object")
    for name in _OURS:
        if raw.pop(name, None) is not None:
            log.warning(
                "%s: its %r is not used; --optimizer, --scheduler, --learning-rate and the like "
                "say that",
                file.name,
                name,
            )
    return raw


def generated(config: TrainConfig) -> dict[str, Any]:
    """Return the configuration of ``--parallel zero1`` to ``zero3``."""
    stage = int(config.parallel.removeprefix("zero")) if config.parallel != "ddp" else 2
    zero: dict[str, Any] = {"stage": stage, "overlap_comm": True, "contiguous_gradients": True}
    if config.offload:
        zero["offload_optimizer"] = {"device": "cpu", "pin_memory": True}
    if stage == 3:
        if config.offload:
            zero["offload_param"] = {"device": "cpu", "pin_memory": True}
        zero |= {
            "reduce_bucket_size": "auto",
            "stage3_prefetch_bucket_size": "auto",
            "stage3_param_persistence_threshold": "auto",
        }
    return {
        "train_batch_size": "auto",
        "train_micro_batch_size_per_gpu": "auto",
        "gradient_accumulation_steps": "auto",
        "gradient_clipping": "auto",
        "bf16": {"enabled": "auto"},
        "fp16": {"enabled": "auto"},
        "zero_optimization": zero,
    }


def parting_of(plugin: DeepSpeedPlugin, world: int) -> Parting:
    """Return what a stage parts, and what of it is offloaded."""
    stage = int(plugin.zero_stage)
    zero: dict[str, Any] = plugin.deepspeed_config.get("zero_optimization", {})
    parted = PARTED[-stage:]
    offloads = {"offload_optimizer": "optimizer", "offload_param": "weights"}
    moved = [part for name, part in offloads.items() if _device(zero.get(name)) != "none"]
    elsewhere = tuple(each for each in moved if each in parted)
    return Parting(world, parted, elsewhere, copies=True)


def _device(section: Any) -> str:  # noqa: ANN401
    return str(section.get("device", "none")) if isinstance(section, dict) else "none"


@dataclass(frozen=True)
class Filling:
    """What takes the place of "auto"."""

    config: TrainConfig
    world: int
    hidden: int
    """The model's hidden size: buckets are chosen by it, as transformers does."""
    dtype: torch.dtype
    """Of what is trained."""

    @classmethod
    def of(cls, config: TrainConfig, world: int, learner: nn.Module, dtype: torch.dtype) -> Filling:
        """Take them from a run."""
        shape = getattr(getattr(learner, "model", None), "config", None)
        return cls(config, world, int(getattr(shape, "hidden_size", 4096)), dtype)

    @property
    def values(self) -> dict[str, Any]:
        """Return them by DeepSpeed's names."""
        config, square = self.config, self.hidden * self.hidden
        rows = config.batch_size * config.gradient_accumulation
        return {
            "train_micro_batch_size_per_gpu": config.batch_size,
            "gradient_accumulation_steps": config.gradient_accumulation,
            "train_batch_size": rows * self.world,
            "gradient_clipping": config.max_grad_norm,
            "bf16.enabled": self.dtype == torch.bfloat16,
            "fp16.enabled": self.dtype == torch.float16,
            "zero_optimization.reduce_bucket_size": square,
            "zero_optimization.stage3_prefetch_bucket_size": int(0.9 * square),
            "zero_optimization.stage3_param_persistence_threshold": 10 * self.hidden,
        }

    def filled(self, plugin: DeepSpeedPlugin) -> dict[str, Any]:
        """Return the configuration as DeepSpeed takes it.

        :raises ConfigError: if something else is "auto".
        """
        found: dict[str, Any] = plugin.deepspeed_config
        try:
            plugin.deepspeed_config_process(must_match=False, **self.values)
        except ValueError as error:
            raise ConfigError(f"DeepSpeed's configuration: {error}") from error
        # What the run says counts: the loop parts steps into passes, and scales gradients.
        found |= {name: self.values[name] for name in _DECIDED}
        found["steps_per_print"] = 1 << 30
        found.setdefault("zero_allow_untested_optimizer", True)
        found.setdefault("zero_force_ds_cpu_optimizer", False)
        return found


_DECIDED = (
    "train_micro_batch_size_per_gpu",
    "gradient_accumulation_steps",
    "train_batch_size",
    "gradient_clipping",
)
