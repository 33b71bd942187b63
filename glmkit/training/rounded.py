"""How training steps multiply by frozen matrices that lie rounded.

The way there is our kernel's, which answers later, too: whole numbers, tokens rounded to 16 bits.
The way back needs the matrix the other way round. Of models up to a billion numbers it is rounded
once more for that, to 8 bits in groups of 32, and multiplied by the same kernel with gradients
rounded to 16 bits: their cosine with exact ones is 0.9997. Of larger ones, and on other devices,
the matrix is expanded for each product, and gradients are exact.

Letters: N tokens, K input columns, M output columns.
"""

from __future__ import annotations

import copy
from typing import cast

import torch
from torch import Tensor, nn

from ..runtime.kernels import OwnKernel, torch_team
from ..runtime.linears import Int4Linear, Int8Linear
from ..runtime.quantize import GROUP, Int8Weight

Rounding = Int4Linear | Int8Linear
QUANTISED = (Int4Linear, Int8Linear)


class Rounded:
    """A linear layer's matrix (M, K), there and back.

    :param turns: keep it the other way round, too, once it was needed so.
    """

    def __init__(self, linear: Rounding, *, turns: bool = False) -> None:
        self.linear, self.turns = linear, turns
        self.own = None if linear.own is None else _narrow(linear.own)
        self.count = linear.out_features
        self._back: OwnKernel | None = None

    def there(
        self, x: Tensor, norm: Tensor | None, eps: float, onto: Tensor | None
    ) -> Tensor | None:
        """Return ``onto + norm(x) @ matrix.T``, (N, M); None where no kernel takes them.

        :param x: (N, K).
        :param norm: weight (K) of an RMS norm.
        :param onto: (N, M).
        """
        given = [each for each in (x, norm, onto) if each is not None]
        if self.own is None or not all(map(_is_single, given)):
            return None
        x = x.contiguous()
        onto = None if onto is None else onto.clone(memory_format=torch.contiguous_format)
        return self.own(x, norm=norm, eps=eps, onto=onto)

    def write(self, x: Tensor, out: Tensor) -> Tensor:
        """Write ``x @ matrix.T`` to ``out`` (N, M); only where there is a kernel."""
        return cast(OwnKernel, self.own)(x.contiguous(), out=out)

    def back(self, grad: Tensor) -> Tensor:
        """Return ``grad @ matrix``, (N, K), for ``grad`` (N, M)."""
        if not self.turns or self.own is None or not _is_single(grad):
            return torch.mm(grad, self.linear.expanded(grad.dtype))
        if self._back is None:
            self._back = _turned(self.own)
        return self._back(grad.contiguous())

    def matrix(self, dtype: torch.dtype) -> Tensor:
        """Return the matrix as ordinary numbers."""
        return self.linear.expanded(dtype)


def rounded_of(linear: Rounding) -> Rounded:
    """Return how steps multiply by a layer's matrix; the same object each time."""
    if _HERE not in vars(linear):
        vars(linear)[_HERE] = Rounded(linear)
    return cast(Rounded, vars(linear)[_HERE])


def round_steps(model: nn.Module) -> None:
    """Let steps multiply by the rounded matrices of a model in the way that suits its size."""
    found = [each for each in model.modules() if isinstance(each, QUANTISED)]
    turns = turns_up_to(sum(each.in_features * each.out_features for each in found))
    for each in found:
        vars(each)[_HERE] = Rounded(each, turns=turns and each.out_features % GROUP == 0)


def turns_up_to(numbers: int) -> bool:
    """Tell whether matrices of so many numbers are kept the other way round, too.

    It depends on nothing else, so that a training that goes on does so with the same gradients.
    """
    return numbers <= _TURNED


_TURNED = 1 << 30
_HERE = "rounded_steps"


def _narrow(own: OwnKernel) -> OwnKernel:
    """Return a kernel over the same memory that rounds to 16 bits, on torch's threads.

    8 bits, which answers are made with where that shows least, changed the loss by 0.3 % and left
    gradients a cosine of 0.998 with exact ones; 16 change the loss by 0.002 %. 32 take longer than
    an ordinary product.
    """
    found = copy.copy(own)
    found.width = 16
    found.team = torch_team()
    return found


def _is_single(numbers: Tensor) -> bool:
    return numbers.dtype == torch.float32 and numbers.device.type == "cpu"


def _turned(own: OwnKernel) -> OwnKernel:
    """Return the kernel of the matrix (K, M) the other way round, rounded to 8 bits in groups."""
    rows, columns = own.shape
    integers = torch.empty((columns, rows), dtype=torch.int8)
    scale = torch.empty((columns, rows // GROUP), dtype=torch.float16)
    wide = own.expand().t()
    for start in range(0, columns, _PART):
        part = slice(start, start + _PART)
        groups = wide[part].unflatten(1, (-1, GROUP))  # type: ignore[no-untyped-call]
        scale[part] = groups.abs().amax(-1).div_(127)
        step = scale[part, :, None].float().clamp_(min=_LEAST)
        integers[part] = (groups / step).round_().clamp_(-127, 127).flatten(1).to(torch.int8)
    return _narrow(OwnKernel(Int8Weight(integers, scale)))


_PART = 64
_LEAST = 2.0**-24
