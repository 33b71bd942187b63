"""Linear layers that know the way back: norm, matrix, LoRA, gate and sum as one step of autograd.

Left to itself, autograd keeps what every operation gives, and copies where it adds. Here a step
keeps what went in, and of a gated one what came out before the gate; the rest is worked out again.
A frozen matrix gets no gradient, and nothing is worked out that nobody asks for.

Letters: N tokens, K input columns, M output columns, r rank.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from ..runtime.linears import Int4Linear, Int8Linear
from .rounded import Rounded, rounded_of


@dataclass(frozen=True)
class Shape:
    """What a step does beside multiplying."""

    eps: float = 0.0
    """Of the norm."""
    scale: float = 1.0
    """Of the LoRA."""
    gated: bool = False
    """The first half of the outputs goes through SiLU and multiplies the second half."""
    rounded: Rounded | None = None
    """The matrix (M, K), where it is kept in integers."""


def step(
    x: Tensor,
    weight: Tensor | None,
    *,
    norm: Tensor | None = None,
    bias: Tensor | None = None,
    lora: tuple[Tensor, Tensor] | None = None,
    onto: Tensor | None = None,
    shape: Shape,
) -> Tensor:
    """Return ``onto + gate(linear(norm(x)))``; what is not given is left out.

    :param x: (..., K).
    :param weight: (M, K); None: ``shape`` gives it.
    :param norm: weight (K) of an RMS norm.
    :param lora: (r, K) and (M, r).
    :param onto: (..., M).
    """
    down, up = lora or (None, None)
    # Views are made outside, so that what is given may be changed in place, as others' outputs.
    given = (_flat(x), weight, norm, bias, down, up, None if onto is None else _flat(onto), shape)
    out = _stepped(*given) if torch.is_grad_enabled() else _Forward(*given).out
    return out.view(*x.shape[:-1], out.shape[-1])


def _stepped(*given: Any) -> Tensor:  # noqa: ANN401
    return cast(Tensor, _Step.apply(*given))  # type: ignore[no-untyped-call]


class _Forward:
    """One way through; everything is (N, columns) here."""

    def __init__(
        self,
        x: Tensor,
        weight: Tensor | None,
        norm: Tensor | None,
        bias: Tensor | None,
        down: Tensor | None,
        up: Tensor | None,
        onto: Tensor | None,
        shape: Shape,
    ) -> None:
        self.factor = None if norm is None else _factor(x, shape.eps)
        """(N, 1), what the norm multiplies each vector by."""
        self.low: Tensor | None = None
        """(N, r), what the LoRA narrows the tokens down to."""
        out = None
        if shape.rounded is not None:
            added = None if shape.gated else onto
            out = shape.rounded.there(x, norm, shape.eps, added)
        if out is not None:
            out = out if bias is None else out.add_(bias)
            if down is not None:
                self.low = _narrowed(x, norm, self.factor, down)
        else:
            normed = x if norm is None else _normed(x, norm, self.factor)
            out = _multiplied(normed, _matrix(weight, shape, x.dtype), bias, onto, shape)
            if down is not None:
                self.low = torch.mm(normed, down.to(x.dtype).t())
        if up is not None and self.low is not None:
            out.addmm_(self.low, up.to(x.dtype).t(), alpha=shape.scale)
        self.wide = out if shape.gated else None
        """(N, M), what goes into the gate."""
        self.out = _gated(out, onto) if shape.gated else out


def _multiplied(
    x: Tensor, matrix: Tensor, bias: Tensor | None, onto: Tensor | None, shape: Shape
) -> Tensor:
    """Return the product (N, M) with what is added to it; to a gated one that comes later."""
    onto = None if shape.gated else onto
    if onto is None:
        return F.linear(x, matrix, bias)
    return torch.addmm(onto if bias is None else onto + bias, x, matrix.t())


def _gated(wide: Tensor, onto: Tensor | None) -> Tensor:
    gate, value = wide.chunk(2, dim=-1)
    out = F.silu(gate).mul_(value)
    return out if onto is None else out.add_(onto)


def _flat(x: Tensor) -> Tensor:
    return x.reshape(-1, x.shape[-1])


def _matrix(weight: Tensor | None, shape: Shape, dtype: torch.dtype) -> Tensor:
    return cast(Rounded, shape.rounded).matrix(dtype) if weight is None else weight


def _narrowed(x: Tensor, norm: Tensor | None, factor: Any, down: Tensor) -> Tensor:  # noqa: ANN401
    """Return what a LoRA narrows ``norm(x)`` down to, (N, r); the normed tokens never arise."""
    if norm is None:
        return torch.mm(x, down.t())
    return torch.mm(x, (down * norm).t()).mul_(factor)


def _factor(x: Tensor, eps: float) -> Tensor:
    """Return what scales each vector of (N, K) to unit mean square, (N, 1), in single precision."""
    wide = x.to(torch.promote_types(x.dtype, torch.float32))
    square = torch.linalg.vecdot(wide, wide)[:, None]
    return cast(Tensor, square.div_(x.shape[-1]).add_(eps).rsqrt_())


def _normed(x: Tensor, weight: Tensor, factor: Any) -> Tensor:  # noqa: ANN401
    return cast(Tensor, (x * factor).mul_(weight).to(x.dtype))


class _Step(torch.autograd.Function):
    """One step of :func:`step` with its way back."""

    @staticmethod
    def forward(ctx: Any, *given: Any) -> Tensor:  # noqa: ANN401
        x, weight, norm, bias, down, up, _, shape = given
        done = _Forward(*given)
        ctx.shape = shape
        needed = norm is not None or down is not None or ctx.needs_input_grad[1]
        kept = x if needed else x.new_empty(0)
        ctx.save_for_backward(kept, weight, norm, bias, down, up, done.factor, done.low, done.wide)
        return done.out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:  # noqa: ANN401
        way = _Backward(ctx.shape, grad, *_kept(ctx))
        wants_x, wants_weight, wants_norm, wants_bias, wants_down, wants_up, wants_onto, _ = (
            ctx.needs_input_grad
        )
        to_x, to_norm = way.to_x(wants_norm) if wants_x or wants_norm else (None, None)
        return (
            to_x,
            way.to_weight() if wants_weight else None,
            to_norm,
            way.grad.sum(0) if wants_bias else None,
            way.to_down() if wants_down else None,
            way.to_up() if wants_up else None,
            grad if wants_onto else None,
            None,
        )


def _kept(ctx: Any) -> tuple[Any, ...]:  # noqa: ANN401
    return cast("tuple[Any, ...]", ctx.saved_tensors)


@dataclass
class _Backward:
    """One way back: what :class:`_Step` kept, and the gradient of what it gave."""

    shape: Shape
    grad: Tensor
    """(N, M), behind the product."""
    x: Tensor
    weight: Tensor | None
    norm: Tensor | None
    bias: Tensor | None
    down: Any
    up: Any
    factor: Any
    low: Any
    wide: Tensor | None

    def __post_init__(self) -> None:
        if self.wide is not None:
            self.grad = _ungated(self.wide, self.grad)

    @cached_property
    def back(self) -> Tensor:
        """Return the gradient of what the LoRA narrows down to, (N, r)."""
        # Of narrow products, those are quick whose rows are few.
        narrow = torch.mm(self.up.to(self.grad.dtype).t(), self.grad.t()).t()
        return narrow.mul_(self.shape.scale)

    def to_down(self) -> Tensor:
        """Return the gradient of the LoRA's first half, (r, K)."""
        back = self.back if self.norm is None else self.back * self.factor
        found = torch.mm(back.to(self.x.dtype).t(), self.x).to(self.down.dtype)
        return found if self.norm is None else found.mul_(self.norm)

    def to_up(self) -> Tensor:
        """Return the gradient of the LoRA's second half, (M, r)."""
        found = torch.mm(self.low.t(), self.grad).t()
        return found.mul_(self.shape.scale).to(self.up.dtype)

    def to_weight(self) -> Tensor:
        """Return the gradient of the matrix, (M, K)."""
        normed = self.x if self.norm is None else _normed(self.x, self.norm, self.factor)
        return torch.mm(self.grad.t(), normed)

    def to_x(self, wants_norm: bool) -> tuple[Tensor, Tensor | None]:
        """Return the gradients of what came in, (N, K), and of the norm's weight if wanted."""
        if self.weight is None:
            found = cast(Rounded, self.shape.rounded).back(self.grad)
        else:
            found = torch.mm(self.grad, self.weight)
        if self.down is not None:
            found.addmm_(self.back, self.down.to(found.dtype))
        if self.norm is None:
            return found, None
        return _unnormed(self.x, self.norm, self.factor, found, wants_norm)


def _ungated(wide: Tensor, grad: Tensor) -> Tensor:
    """Return the gradient (N, 2f) of what goes into a gate."""
    gate, value = wide.chunk(2, dim=-1)
    out = torch.empty_like(wide)
    to_gate, to_value = out.chunk(2, dim=-1)
    torch.ops.aten.silu.out(gate, out=to_value).mul_(grad)
    torch.mul(grad, value, out=to_gate)
    torch.ops.aten.silu_backward.grad_input(to_gate, gate, grad_input=to_gate)
    return out


def _unnormed(
    x: Tensor, weight: Tensor, factor: Tensor, grad: Tensor, wanted: bool
) -> tuple[Tensor, Tensor | None]:
    """Return the gradients of what went into a norm, and of its weight if wanted."""
    wide, back = x.to(factor.dtype), grad.to(factor.dtype)
    to_weight = (wide * factor).mul_(back).sum(0).to(weight.dtype) if wanted else None
    back = back.mul_(weight)  # the gradient is ours alone, converted or not
    along = torch.linalg.vecdot(back, wide)[:, None]
    share = along.mul_(factor.pow(3)).div_(-x.shape[-1])
    return back.mul_(factor).addcmul_(wide, share).to(x.dtype), to_weight


class FusedLinear(nn.Linear):
    """A linear layer whose step goes back as one."""

    def project(
        self, x: Tensor, norm: Tensor | None, eps: float, gated: bool, onto: Tensor | None
    ) -> Tensor | None:
        """Do all of :func:`glmkit.models.causal.project`; None where that can't be."""
        if is_away(self.weight) or x.dtype != self.weight.dtype:
            return None
        shape = Shape(eps=eps, gated=gated)
        return step(x, self.weight, norm=norm, bias=self.bias, onto=onto, shape=shape)

    def forward(self, x: Tensor) -> Tensor:
        """Return (..., M) for ``x`` (..., K)."""
        done = self.project(x, None, 0.0, False, None)
        return super().forward(x) if done is None else done


def is_away(weight: Tensor) -> bool:
    """Tell whether a matrix is only there while its own module is called (DeepSpeed ZeRO-3)."""
    return hasattr(weight, "ds_id")


class _FusedRounded(nn.Module):
    """A linear layer over a rounded matrix whose step goes back as one.

    It multiplies alike whether gradients are wanted or not, so that what is learnt is measured, and
    compared with a model's first self, by the same numbers. Only answers are written by the quicker
    kernel that rounds what goes in more coarsely: they run in inference mode.
    """

    def project(
        self, x: Tensor, norm: Tensor | None, eps: float, gated: bool, onto: Tensor | None
    ) -> Tensor | None:
        """Do all of :func:`glmkit.models.causal.project`; None where that can't be."""
        if torch.is_inference_mode_enabled():
            return super().project(x, norm, eps, gated, onto)  # type: ignore[misc, no-any-return]
        linear = cast(Any, self)
        shape = Shape(eps=eps, gated=gated, rounded=rounded_of(linear))
        return step(x, None, norm=norm, bias=linear.bias, onto=onto, shape=shape)

    def forward(self, x: Tensor) -> Tensor:
        """Return (..., M) for ``x`` (..., K)."""
        if torch.is_inference_mode_enabled():
            return super().forward(x)  # type: ignore[no-any-return]
        return cast(Tensor, self.project(x, None, 0.0, False, None))


class FusedInt4(_FusedRounded, Int4Linear):
    """Of an int4 matrix."""


class FusedInt8(_FusedRounded, Int8Linear):
    """Of an int8 matrix."""
