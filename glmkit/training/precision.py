"""In which precision a training computes."""

from __future__ import annotations

import time
from dataclasses import dataclass
from functools import cache

import torch
from torch import nn

from ..runtime.kernels import has_own_kernel
from ..runtime.loading import DTYPES
from .config import TrainConfig
from .tuning import Tuning

_SIZE = 512
_FASTER = 1.3
"""Half precision is worth its rounding where it is faster by this."""


@dataclass(frozen=True)
class Precision:
    """What weights lie in, and what is computed in."""

    weights: torch.dtype
    """That weights are loaded in; frozen ones keep it."""
    computing: torch.dtype | None = None
    """What products are taken in where weights that learn lie in single precision; None: what
    meets is of one kind already."""

    @classmethod
    def of(cls, dtype: torch.dtype, tuning: Tuning, *, masters: bool = False) -> Precision:
        """Keep weights that are trained themselves in single precision.

        Steps of a small learning rate are lost in half precision: what they add is less than half
        of the last digit.

        :param dtype: as :func:`training_dtype` has it.
        :param masters: somebody else keeps them so (DeepSpeed).
        """
        if tuning.kind != "full" or dtype == torch.float32 or masters:
            return cls(dtype)
        # Where all are trained, none is rounded even once.
        return cls(torch.float32 if getattr(tuning, "whole", False) else dtype, dtype)

    def keep(self, model: nn.Module) -> None:
        """Let what is trained lie in single precision, in place."""
        for each in model.parameters():
            if self.computing is not None and each.requires_grad:
                each.data = each.data.float()


def training_dtype(config: TrainConfig, tuning: Tuning, device: torch.device) -> torch.dtype:
    """Return the precision of the frozen weights, and of all computing beside them.

    ``auto`` is single precision where the weights themselves learn. Elsewhere it is bfloat16 where
    the device multiplies that faster, else what is left: float16 on cards, float32 on processors.
    """
    if config.dtype != "auto":
        return DTYPES[config.dtype]
    if tuning.kind == "full":
        return torch.float32
    if device.type == "cuda":
        return torch.bfloat16 if torch.cuda.is_bf16_supported() else torch.float16
    if device.type == "cpu":
        return torch.bfloat16 if _half_is_faster() else torch.float32
    return torch.float32


def quantisation(
    config: TrainConfig, tuning: Tuning, device: torch.device, dtype: torch.dtype
) -> str | None:
    """Return the bits of the frozen weights, ``int4`` or ``int8``; None: they are plain.

    They are what the recipe says. A LoRA leaves weights that lie rounded as they are where our
    kernel multiplies by them: that is faster than by expanded ones, and takes less memory.

    :param device: that computes.
    :param dtype: that it computes in.
    """
    said: str | None = getattr(config, "quantize", None)
    single = device.type == "cpu" and dtype == torch.float32
    if said is not None or config.dtype != "auto" or not single or config.sharded:
        return said
    lies: str | None = getattr(tuning, "lies", None)
    return lies if has_own_kernel() else None


@cache
def _half_is_faster() -> bool:
    """Tell whether this processor multiplies bfloat16 faster than float32; takes milliseconds."""
    single, half = (_seconds(each) for each in (torch.float32, torch.bfloat16))
    return single > _FASTER * half


def _seconds(dtype: torch.dtype) -> float:
    """Return the least time of a product of two square matrices."""
    left = torch.ones(_SIZE, _SIZE, dtype=dtype)
    taken = []
    for _ in range(4):
        began = time.perf_counter()
        left @ left
        taken.append(time.perf_counter() - began)
    return min(taken)
