"""Give a model's linear layers, and the LoRAs on them, steps that go back as one."""

from __future__ import annotations

import sys

from torch import nn

from ..runtime.linears import Int4Linear, Int8Linear
from .linears import FusedInt4, FusedInt8, FusedLinear
from .rounded import round_steps


def fuse(model: nn.Module) -> None:
    """Let the linear layers of a model go back as one step each, in place.

    Call it after adapters were put on. Parameters and their names stay as they are, so that saving
    does not notice.
    """
    kinds: dict[type[nn.Module], type[nn.Module]] = {
        nn.Linear: FusedLinear,
        Int4Linear: FusedInt4,
        Int8Linear: FusedInt8,
    }
    if "peft" in sys.modules:  # only then there are layers of it; importing it takes seconds
        from peft.tuners.lora import Linear

        from .fused_lora import FusedLora

        kinds[Linear] = FusedLora
    for module in model.modules():
        if type(module) in kinds:
            module.__class__ = kinds[type(module)]
    round_steps(model)
