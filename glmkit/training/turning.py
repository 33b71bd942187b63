"""Rotary positions that autograd keeps nothing of: going back is turning back."""

from __future__ import annotations

from typing import Any, cast

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from ..models.glm import rotate_


def turned(heads: Tensor, turns: Tensor, count: int) -> Tensor:
    """Return (B, T, heads, D) with the leading ``count`` heads turned.

    :param turns: complex (B, T, 1, rotary_dim / 2).
    """
    return cast(Tensor, _Turn.apply(heads, turns, count))  # type: ignore[no-untyped-call]


class _Turn(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, heads: Tensor, turns: Tensor, count: int) -> Tensor:  # noqa: ANN401
        ctx.turns, ctx.count = turns, count
        return _copy(heads, turns, count)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:  # noqa: ANN401
        return _copy(grad, ctx.turns.conj().resolve_conj(), ctx.count), None, None


def _copy(heads: Tensor, turns: Tensor, count: int) -> Tensor:
    out = heads.clone(memory_format=torch.contiguous_format)
    rotate_(out[:, :, :count], turns)
    return out
