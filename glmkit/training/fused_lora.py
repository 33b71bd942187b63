"""PEFT's LoRA in steps that go back as one."""

from __future__ import annotations

from typing import Any, cast

from peft.tuners.lora import Linear as PeftLinear
from torch import Tensor

from .linears import FusedInt4, FusedInt8, FusedLinear, Shape, is_away, step
from .rounded import QUANTISED, rounded_of

FUSED = (FusedLinear, FusedInt4, FusedInt8)


class FusedLora(PeftLinear):
    """PEFT's LoRA; where it is a plain one that learns, in one step with what surrounds it."""

    def project(
        self, x: Tensor, norm: Tensor | None, eps: float, gated: bool, onto: Tensor | None
    ) -> Tensor | None:
        """Do all of :func:`glmkit.models.causal.project`; None where that can't be."""
        base: Any = self.base_layer
        if self.disable_adapters and not self.merged and isinstance(base, FUSED):
            return base.project(x, norm, eps, gated, onto)
        name = self._plain()
        if name is None:
            return None
        quantised = isinstance(base, QUANTISED)
        weight = None if quantised else base.weight
        if weight is not None and (is_away(weight) or x.dtype != weight.dtype):
            return None
        shape = Shape(eps, self.scaling[name], gated, rounded_of(base) if quantised else None)
        down, up = cast(Any, self.lora_A[name]), cast(Any, self.lora_B[name])
        lora = down.weight, up.weight
        return step(x, weight, norm=norm, bias=base.bias, lora=lora, onto=onto, shape=shape)

    def _plain(self) -> str | None:
        """Return the name of the only active adapter, if it does no more than a LoRA must."""
        if self.disable_adapters or self.merged or len(self.active_adapters) != 1:
            return None
        name = self.active_adapters[0]
        if name not in self.lora_A or name in self.lora_variant or self.lora_bias[name]:
            return None
        dropped = getattr(self.lora_dropout[name], "p", 0.0) and self.training
        return None if dropped else cast(str, name)

    def forward(self, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:  # noqa: ANN401
        """Return (..., M) for ``x`` (..., K)."""
        done = None if args or kwargs else self.project(x, None, 0.0, False, None)
        return super().forward(x, *args, **kwargs) if done is None else done
