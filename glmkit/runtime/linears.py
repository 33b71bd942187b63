"""Linear layers and token tables over quantised matrices.

Our own kernel takes any number of tokens, and gives each the same whatever their number. Torch's
take few; with many at once (a prompt) multiplying is cheaper than unpacking again and again, so the
matrix is expanded once for all of them, as it is where there is no kernel.

Shapes: N output rows, K input columns, M tokens.
"""

from __future__ import annotations

import math
import re
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from .kernels import (
    BLOCK,
    EXPAND_FROM,
    EXPANDED_FROM,
    Kernel,
    OwnKernel,
    multiply_int4,
    pack_int4,
    width_for,
)
from .quantize import Int4Weight, Int8Weight, QuantizedWeight


class _QuantizedLinear(nn.Module):
    """What int4 and int8 layers share: a kernel for few tokens, expansion for many."""

    def __init__(
        self, matrix: QuantizedWeight | OwnKernel, bias: Tensor | None, *, keep: bool
    ) -> None:
        super().__init__()
        self.matrix = matrix
        """In the one form that is kept: our kernel's, or plain integers."""
        self.own = matrix if isinstance(matrix, OwnKernel) else None
        self.out_features, self.in_features = matrix.shape
        self.bias = bias
        self.keep = keep
        self._kept: Tensor | None = None

    @property
    def qweight(self) -> Tensor:
        """An empty tensor where the integers are: by this name PEFT asks where that is."""
        if isinstance(self.matrix, OwnKernel):  # which runs on the processor alone
            return torch.empty(0, dtype=torch.int8)
        return torch.empty(0, dtype=torch.int8, device=self.matrix.scale.device)

    def project(
        self,
        x: Tensor,
        norm: Tensor | None,
        eps: float,
        gated: bool,
        onto: Tensor | None,
    ) -> Tensor | None:
        """Do all of :func:`glmkit.models.glm.project` in one call; None where that can't be."""
        columns = x.shape[-1]
        if self.own is None or _wants_grad(x, norm, onto):
            return None
        if not all(each is None or _plain(each) for each in (x, norm, onto)):
            return None
        if (self.bias is not None and (gated or onto is not None)) or (
            gated and self.own.rows % (2 * BLOCK)
        ):
            return None
        rows = math.prod(x.shape[:-1])
        flat = None if onto is None else onto.view(rows, -1)
        out = self.own(x.reshape(rows, columns), norm=norm, eps=eps, gated=gated, onto=flat)
        out = out.view(*x.shape[:-1], out.shape[-1])
        return out if self.bias is None else out.add_(self.bias)

    def forward(self, x: Tensor) -> Tensor:
        """Return (..., N) for ``x`` (..., K), in the dtype of ``x``."""
        columns = x.shape[-1]
        few = EXPAND_FROM if self._kept is None else EXPANDED_FROM
        flat = None
        if _wants_grad(x):  # no kernel knows how to go back
            return _there_and_back(self, x)
        if self.own is not None:
            flat = self.own(x.reshape(-1, columns).float().contiguous())
        elif x.numel() < columns * few:
            flat = self._few(x.reshape(-1, columns))
        if flat is None:
            return F.linear(x, self.expanded(x.dtype), self.bias)
        out = flat.view(*x.shape[:-1], self.out_features).to(x.dtype)
        return out if self.bias is None else out.add_(self.bias)

    def _few(self, x: Tensor) -> Tensor | None:
        """Multiply few tokens (M, K) with torch's kernel; None where there is none."""
        raise NotImplementedError

    def expanded(self, dtype: torch.dtype) -> Tensor:
        """Return the matrix (N, K) as ordinary numbers."""
        if self._kept is not None:
            return self._kept
        matrix = self.matrix.expand(dtype)
        if self.keep:
            self._kept = matrix
        return matrix


def _wants_grad(*tensors: Tensor | None) -> bool:
    """Tell whether somebody will ask how results depend on these."""
    if not torch.is_grad_enabled():
        return False
    return any(each is not None and each.requires_grad for each in tensors)


def _plain(numbers: Tensor) -> bool:
    """Tell whether our kernel can read these, or write to them, where they lie."""
    on_cpu = numbers.device.type == "cpu"
    return on_cpu and numbers.dtype == torch.float32 and numbers.is_contiguous()


def _there_and_back(linear: _QuantizedLinear, x: Tensor) -> Tensor:
    return cast(Tensor, _Expanding.apply(x, linear.bias, linear))  # type: ignore[no-untyped-call]


class _Expanding(torch.autograd.Function):
    """A product whose matrix is expanded again for its gradient, so that none is kept till then."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, bias: Tensor | None, linear: _QuantizedLinear) -> Tensor:  # noqa: ANN401
        ctx.linear = linear
        return F.linear(x, linear.expanded(x.dtype), bias)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:  # noqa: ANN401
        to_x = grad @ ctx.linear.expanded(grad.dtype) if ctx.needs_input_grad[0] else None
        to_bias = grad.flatten(0, -2).sum(0) if ctx.needs_input_grad[1] else None
        return to_x, to_bias, None


class Int4Linear(_QuantizedLinear):
    """A linear layer over an int4 matrix.

    :param kernel: what multiplies few tokens; None: the expanded matrix.
    :param keep: keep the expanded matrix once a prompt needed it; for small models.
    :param fine: our kernel multiplies in single precision.
    """

    def __init__(
        self,
        weight: Int4Weight,
        bias: Tensor | None = None,
        *,
        kernel: Kernel | None,
        keep: bool = False,
        fine: bool = False,
    ) -> None:
        super().__init__(
            OwnKernel(weight, width=32 if fine else 16) if kernel == "own" else weight,
            bias,
            keep=keep,
        )
        self.packed = pack_int4(weight) if kernel == "torch" else None

    def _few(self, x: Tensor) -> Tensor | None:
        if self.packed is not None:
            return multiply_int4(x.to(torch.bfloat16), *self.packed)
        return None


class Int8Linear(_QuantizedLinear):
    """A linear layer over an int8 matrix.

    :param kernel: what multiplies few tokens; None: the expanded matrix.
    :param fine: our kernel multiplies in single precision.
    """

    def __init__(
        self,
        weight: Int8Weight,
        bias: Tensor | None = None,
        *,
        kernel: Kernel | None,
        fine: bool = False,
    ) -> None:
        if kernel == "torch":
            weight = weight.per_row()
        super().__init__(
            OwnKernel(weight, width=32 if fine else 16) if kernel == "own" else weight,
            bias,
            keep=False,
        )
        self.scale = weight.scale[:, 0].bfloat16() if kernel == "torch" else None

    def _few(self, x: Tensor) -> Tensor | None:
        if self.scale is not None and isinstance(self.matrix, Int8Weight):
            return torch._weight_int8pack_mm(x.to(torch.bfloat16), self.matrix.integers, self.scale)
        return None


def choose_widths(model: nn.Module) -> None:
    """Let tokens be rounded to 8 bits wherever :func:`width_for` allows it."""
    found = {stem: each for stem, each in model.named_modules() if isinstance(each, Int4Linear)}
    blocks = [int(each[1]) for each in map(_BLOCK.search, found) if each is not None]
    for stem, linear in found.items():
        if linear.own is not None:
            linear.own.width = width_for(stem, max(blocks, default=0) + 1)


_BLOCK = re.compile(r"\.layers\.(\d+)\.")


class StoredEmbedding(nn.Embedding):
    """A token table in the dtype that it has on disk; only the rows asked for are converted.

    :param weight: (V, K).
    :param dtype: of the rows.
    """

    def __init__(self, weight: Tensor, dtype: torch.dtype) -> None:
        super().__init__(weight.shape[0], weight.shape[1], _weight=weight)
        self.requires_grad_(False)
        self.dtype = dtype

    def forward(self, ids: Tensor) -> Tensor:
        """Look ``ids`` (B, T) up: (B, T, K)."""
        return super().forward(ids.to(self.weight.device)).to(self.dtype)


class QuantizedEmbedding(nn.Module):
    """A token table kept in integers; only the rows asked for are expanded."""

    def __init__(self, weight: QuantizedWeight, dtype: torch.dtype) -> None:
        super().__init__()
        self.table = weight
        self.dtype = dtype

    def forward(self, ids: Tensor) -> Tensor:
        """Look ``ids`` (B, T) up: (B, T, K)."""
        table = self.table
        rows = ids.reshape(-1).to(table.scale.device)
        if isinstance(table, Int4Weight):
            found: QuantizedWeight = Int4Weight(
                table.nibbles[rows], table.scale[rows], table.minimum[rows]
            )
        else:
            found = Int8Weight(table.integers[rows], table.scale[rows])
        return found.expand(self.dtype).view(*ids.shape, -1)
