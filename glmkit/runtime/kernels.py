"""What multiplies by quantised matrices: our extension, or torch's operators where it is missing.

Our kernel rounds tokens too, in groups of 32: beside int8 to 16 bits, which cannot be told from
none, and beside int4 to 8 or 16 (see :func:`width_for`). What 8 bits cost was measured on the
embedded default, in 1284 tokens of prose, licence text and chats: the mean divergence (KL) of what
comes next from what does with exact tokens.

    =======================================  =======  ===============
    8 bits in                                     KL  other best token
    =======================================  =======  ===============
    every matrix, the head too               0.00354  3.0 %
    queries, keys and values alone           0.00109  1.7 %
    gates and values of feed-forward alone   0.00087  1.5 %
    the head alone                           0.00073  1.7 %
    the last block alone, but its queries    0.00065  1.1 %
    outputs of feed-forward alone            0.00052  1.4 %
    outputs of attention alone               0.00010  0.2 %
    (bfloat16 in every matrix)               0.00011  0.3 %
    =======================================  =======  ===============

Of that, the first two blocks make a quarter. What is rounded here, measured over 1551 tokens with
the kernel itself: 0.00076 and 1.3 %, and 0.00101 and 1.7 % without sparing those two.

Shapes: N output rows, K input columns, M tokens.
"""

from __future__ import annotations

import ctypes
import functools
import os
from typing import Literal, cast

import torch
from torch import Tensor

from .parts import by_parts
from .quantize import GROUP, Int4Weight, Int8Weight, QuantizedWeight, quantize_int4, quantize_int8

try:
    from . import _kernels
except ImportError:  # built without a C compiler
    _kernels = None  # type: ignore[assignment]

Kernel = Literal["own", "torch"]
"""What multiplies tokens by a quantised matrix: our extension, or torch's operator."""

Width = Literal[8, 16, 32]
"""Bits that our kernel rounds tokens to; 32 are as good as single precision."""

EXPAND_FROM = 48
"""Tokens from which expanding a matrix and multiplying beats torch's kernels."""

EXPANDED_FROM = 12
"""The same where the matrix was expanded before and kept."""


def pack_int4(weight: Int4Weight) -> tuple[Tensor, Tensor]:
    """Return the kernel's own form of a matrix: packed integers, scales with zeros (K/32, N, 2).

    The kernel computes ``(integer - 8) * scale + zero``.
    """
    packed = torch.ops.aten._convert_weight_to_int4pack_for_cpu(weight.integers().int(), 1)
    scale = weight.scale.float()
    zero = weight.minimum.float() + 8 * scale
    both = torch.stack((scale.t(), zero.t()), dim=-1)
    return packed, both.to(torch.bfloat16).contiguous()


def multiply_int4(x: Tensor, packed: Tensor, scales: Tensor) -> Tensor:
    """Multiply bfloat16 ``x`` (M, K) by a packed matrix: bfloat16 (M, N)."""
    product = torch.ops.aten._weight_int4pack_mm_for_cpu(x, packed, GROUP, scales)
    return cast(Tensor, product)


def multiply_own(x: Tensor, weight: QuantizedWeight, *, width: Width = 16) -> Tensor:
    """Multiply ``x`` (M, K) by a matrix as it lies on disk: float32 (M, N).

    The tokens are rounded in groups of 32; the matrix is not rounded again.
    """
    return OwnKernel(weight, width=width)(x.float().contiguous())


class OwnKernel:
    """A matrix in the form that our extension multiplies by, with what surrounds it in a block.

    A token's results are the same, bit by bit, whatever other tokens there are.

    :param width: bits that tokens are rounded to; beside int8, 8 means 16.
    """

    def __init__(self, weight: QuantizedWeight, *, width: Width = 16) -> None:
        self.shape = self.rows, columns = weight.shape
        """(N, K)."""
        four = isinstance(weight, Int4Weight)
        integers = weight.nibbles if isinstance(weight, Int4Weight) else weight.integers
        least = weight.minimum.data_ptr() if isinstance(weight, Int4Weight) else 0
        scale = weight.scale.expand(-1, columns // GROUP).contiguous()
        self._bits = 4 if four else 8
        self._block = columns // GROUP * (160 if four else 272)
        self._packed = torch.empty(self.rows // BLOCK * self._block, dtype=torch.uint8)
        _kernels.pack(
            integers.data_ptr(), scale.data_ptr(), least, *self.shape, self._packed.data_ptr()
        )
        self.threads = torch.get_num_threads()
        self.width = width if four else max(width, 16)
        self.team = 0
        """Whose threads do it; see :func:`torch_team`."""

    @property
    def form(self) -> tuple[int, int, int]:
        """Address and bits of the packed matrix, and the bits that tokens are rounded to."""
        return self._packed.data_ptr(), self._bits, self.width

    def expand(self, dtype: torch.dtype = torch.float32) -> Tensor:
        """Return the matrix (N, K) as ordinary numbers."""
        return by_parts(self.shape, dtype, torch.device("cpu"), self._expand_into)

    def _expand_into(self, out: Tensor, part: slice) -> None:
        first = self._packed[part.start // BLOCK * self._block :]
        rows, columns = out.shape
        _kernels.expand(first.data_ptr(), self._bits, rows, columns, out.data_ptr())

    def __call__(
        self,
        x: Tensor,
        *,
        norm: Tensor | None = None,
        eps: float = 0.0,
        gated: bool = False,
        onto: Tensor | None = None,
        out: Tensor | None = None,
    ) -> Tensor:
        """Return the product, float32 (M, N), of contiguous float32 ``x`` (M, K).

        :param norm: weight (K) of an RMS norm that ``x`` goes through first.
        :param gated: the first half of the product gates the second: (M, N / 2).
        :param onto: (M, N) that the product is added to, in place.
        :param out: (M, N) that the product is written to; not with ``gated`` or ``onto``.
        :raises ValueError: if something has another shape or dtype, lies elsewhere, or has gaps.
        """
        self._check(x, norm, onto if out is None else out)
        if out is not None:
            onto, then = out, _WRITE
        elif onto is None:
            onto = x.new_empty((x.shape[0], self.rows // 2 if gated else self.rows))
            then = _GATE if gated else _WRITE
        else:
            then = _ADD
        if not len(x):
            return onto
        _kernels.multiply(
            x.data_ptr(),
            onto.data_ptr(),
            self._packed.data_ptr(),
            self._bits,
            x.shape[0],
            *self.shape,
            self.threads,
            0 if norm is None else norm.data_ptr(),
            eps,
            then,
            self.width,
            self.team,
        )
        return onto

    def _check(self, x: Tensor, norm: Tensor | None, onto: Tensor | None) -> None:
        rows, columns = self.shape
        wanted = [(x, (len(x), columns)), (norm, (columns,)), (onto, (len(x), rows))]
        for given, shape in wanted:
            if given is None:
                continue
            fine = given.shape == shape and given.dtype == torch.float32 and given.is_contiguous()
            if not fine or given.device.type != "cpu":
                raise ValueError(
                    f"the kernel of a matrix {rows} x {columns} takes contiguous float32 "
                    f"{shape} in the processor's memory; got {given.dtype} {tuple(given.shape)} "
                    f"with strides {given.stride()} on {given.device}"
                )


_WRITE, _ADD, _GATE = 0, 1, 2
BLOCK = 8  # rows that are packed together


def suits_own(weight: QuantizedWeight) -> bool:
    """Tell whether :func:`multiply_own` takes this matrix on this processor."""
    tensors = [each for each in vars(weight).values() if isinstance(each, Tensor)]
    numbers = [each for each in tensors if each.is_floating_point()]
    if not has_own_kernel() or any(each.dtype != torch.float16 for each in numbers):
        return False
    rows, columns = weight.shape
    if rows % BLOCK or columns % GROUP or columns > _WIDEST:
        return False
    if weight.scale.shape[1] * GROUP != columns and weight.scale.shape[1] != 1:
        return False
    return all(each.is_contiguous() and each.device.type == "cpu" for each in tensors)


_WIDEST = 1 << 20


def has_own_kernel() -> bool:
    """Tell whether our extension was built and this processor has what it needs."""
    # One built from an older source takes other arguments.
    return getattr(_kernels, "FORM", 0) == _FORM and _kernels.supported()


_FORM = 5


@functools.cache
def torch_team() -> int:
    """Return the address of what runs work on torch's own threads; 0 where torch has no OpenMP.

    Where calls of ours and of torch's follow each other, each one's threads spin for a while in
    expectation of more, and take the processor from the other's: then torch's do both.
    """
    found = getattr(ctypes.CDLL(None), "GOMP_parallel", None) if os.name == "posix" else None
    return 0 if found is None else ctypes.cast(found, ctypes.c_void_p).value or 0


def width_for(stem: str, layers: int) -> Width:
    """Choose the bits that the tokens of an int4 matrix are rounded to.

    Where 8 bits are felt most, 16 are taken: in the projection to queries, keys and values, in the
    first two blocks of a model of usual depth, in the last one, and in the head.

    :param stem: name of the matrix in the model.
    :param layers: blocks of the model.
    """
    parts = stem.split(".")
    if "layers" not in parts or parts[-1] == "query_key_value":
        return 16
    block = int(parts[parts.index("layers") + 1])
    return 16 if block < layers // _FIRST or block == layers - 1 else 8


_FIRST = 14
"""Of so many blocks one is spared at the beginning: two of the 28 to 40 that models have."""


def int4_kernel(weight: Int4Weight) -> Kernel | None:
    """Return the fastest kernel for a matrix, or None where there is none."""
    if weight.nibbles.device.type != "cpu":
        return None
    if suits_own(weight):
        return "own"
    return "torch" if has_int4_kernel() and weight.shape[0] % 64 == 0 else None


def int8_kernel(weight: Int8Weight) -> Kernel | None:
    """Return the fastest kernel for a matrix, or None where there is none."""
    if weight.integers.device.type != "cpu":
        return None
    if suits_own(weight):
        return "own"
    return "torch" if has_int8_kernel() else None


@functools.cache
def has_int4_kernel() -> bool:
    """Tell whether this torch multiplies int4 on this processor, and does so rightly."""
    if not hasattr(torch.ops.aten, "_weight_int4pack_mm_for_cpu"):
        return False
    generator = torch.Generator().manual_seed(0)
    weight = quantize_int4(torch.randn(64, 2 * GROUP, generator=generator))
    x = torch.randn(2, 2 * GROUP, generator=generator).bfloat16()
    try:
        got = multiply_int4(x, *pack_int4(weight)).float()
    except (RuntimeError, NotImplementedError):
        return False
    return bool((got - x.float() @ weight.expand().t()).abs().max() < 0.25)


@functools.cache
def has_int8_kernel() -> bool:
    """Tell whether this torch multiplies int8 rows on this processor, and does so rightly."""
    if not hasattr(torch.ops.aten, "_weight_int8pack_mm"):
        return False
    generator = torch.Generator().manual_seed(0)
    weight = quantize_int8(torch.randn(64, 2 * GROUP, generator=generator))
    x = torch.randn(2, 2 * GROUP, generator=generator).bfloat16()
    try:
        got = torch._weight_int8pack_mm(x, weight.integers, weight.scale[:, 0].bfloat16()).float()
    except (RuntimeError, NotImplementedError):
        return False
    return bool((got - x.float() @ weight.expand().t()).abs().max() < 0.25)
