"""A model as it was before what it learns was put on it."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from torch import nn


@contextmanager
def undressed(model: nn.Module) -> Iterator[None]:
    """Let a model compute without its adapters: the reference that DPO, PPO and GRPO compare with.

    Gradients and what is trained stay as they are.
    """
    layers = _adapted(model)
    before = [each._disable_adapters for each in layers]
    try:
        for each in layers:
            each._disable_adapters = True
        yield
    finally:
        for each, was in zip(layers, before, strict=True):
            each._disable_adapters = was


def _adapted(model: nn.Module) -> list[Any]:
    if "peft" not in sys.modules:  # then nobody has put one on, and importing it takes seconds
        return []
    from peft.tuners.tuners_utils import BaseTunerLayer

    return [each for each in model.modules() if isinstance(each, BaseTunerLayer)]
