"""Optimizers by name, and how the learning rate rises and falls."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR, LRScheduler

from ..errors import UsageError
from .config import RunConfig

Group = dict[str, Any]
"""Parameters, and a learning rate of their own where they have one."""


def check_optimizer(config: RunConfig) -> None:
    """See that the optimizer and the scheduler are known, before anything is loaded.

    :raises UsageError: naming those that are.
    """
    if config.optimizer not in _OPTIMIZERS:
        known = ", ".join(_OPTIMIZERS)
        raise UsageError(f"optimizer must be one of {known}, got {config.optimizer!r}")
    if config.scheduler not in _SHAPES:
        _check_theirs(config.scheduler)


def optimizer_of(config: RunConfig, groups: Iterable[Group]) -> Optimizer:
    """Return the optimizer that a configuration names.

    :raises UsageError: if nobody knows the name, or it needs a package that is not installed.
    """
    check_optimizer(config)
    return _OPTIMIZERS[config.optimizer](list(groups), config)


def _adamw(groups: list[Group], config: RunConfig) -> Optimizer:
    return torch.optim.AdamW(
        groups, lr=config.learning_rate, weight_decay=config.weight_decay, fused=_fusable(groups)
    )


def _fusable(groups: list[Group]) -> bool:
    devices = {each.device.type for group in groups for each in group["params"]}
    return devices <= {"cpu"} or devices <= {"cuda"}


def _adamw_8bit(groups: list[Group], config: RunConfig) -> Optimizer:
    try:
        import bitsandbytes
    except ImportError as error:
        raise UsageError(
            "the optimizer adamw_8bit needs bitsandbytes, which is not installed; run: "
            "pip install bitsandbytes, or take --optimizer adamw or adafactor"
        ) from error
    optimizer: Optimizer = bitsandbytes.optim.AdamW8bit(
        groups, lr=config.learning_rate, weight_decay=config.weight_decay
    )
    return optimizer


def _adafactor(groups: list[Group], config: RunConfig) -> Optimizer:
    from transformers.optimization import Adafactor

    build: Callable[..., Optimizer] = Adafactor
    return build(
        groups,
        lr=config.learning_rate,
        weight_decay=config.weight_decay,
        relative_step=False,
        scale_parameter=False,
    )


def _sgd(groups: list[Group], config: RunConfig) -> Optimizer:
    return torch.optim.SGD(groups, lr=config.learning_rate, weight_decay=config.weight_decay)


_OPTIMIZERS = {
    "adamw": _adamw,
    "adamw_8bit": _adamw_8bit,
    "adafactor": _adafactor,
    "sgd": _sgd,
}


def schedule_of(config: RunConfig, optimizer: Optimizer, steps: int) -> LRScheduler:
    """Return how the learning rate rises and falls over a run.

    The usual shapes are worked out here, since importing transformers takes seconds; it is asked
    for all others.

    :raises UsageError: if nobody knows the scheduler, or it needs more than its name.
    """
    warmup = round(steps * config.warmup_ratio)
    shape = _SHAPES.get(config.scheduler)
    if shape is None:
        return _of_transformers(config.scheduler, optimizer, warmup, steps)

    def factor(step: int) -> float:
        if step < warmup:
            return step / warmup
        return shape((step - warmup) / max(1, steps - warmup))

    return LambdaLR(optimizer, factor)


_SHAPES: Mapping[str, Callable[[float], float]] = {
    "constant": lambda done: 1.0,
    "constant_with_warmup": lambda done: 1.0,
    "linear": lambda done: max(0.0, 1 - done),
    "cosine": lambda done: max(0.0, (1 + math.cos(math.pi * done)) / 2),
}
"""By the share of the steps behind the warm-up that is done."""


_ASKING = ("reduce_lr_on_plateau", "greedy")
"""Shapes that depend on what an evaluation measures."""


def _check_theirs(name: str) -> None:
    from transformers.trainer_utils import SchedulerType

    theirs = [each.value for each in SchedulerType if each.value not in (*_SHAPES, *_ASKING)]
    if name not in theirs:
        known = ", ".join((*_SHAPES, *theirs))
        raise UsageError(f"scheduler must be one of {known}, got {name!r}")


def _of_transformers(name: str, optimizer: Optimizer, warmup: int, steps: int) -> LRScheduler:
    from transformers.optimization import get_scheduler

    _check_theirs(name)
    try:
        schedule: LRScheduler = get_scheduler(name, optimizer, warmup, steps)
    except (TypeError, ValueError) as error:
        raise UsageError(
            f"the scheduler {name!r} cannot be used by its name alone: {error}"
        ) from error
    return schedule


def plain(state: Mapping[str, Any]) -> dict[str, Any]:
    """Return the part of a schedule's state that is numbers, for a file of JSON."""
    return {
        key: value
        for key, value in state.items()
        if isinstance(value, (int, float))
        or (isinstance(value, list) and all(isinstance(each, (int, float)) for each in value))
    }
