"""Weight-only quantised matrices: int4 in groups of 32, int8 per group or per row.

On disk a quantised matrix is plain integers with half-precision scales, the same on every
machine. What the processor's kernel wants is packed from it at load time. The layers that use
these are in `linears.py`.

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
    what is so rounded here                  0.00086  1.5 %
    (bfloat16 in every matrix)               0.00009  0.6 %
    =======================================  =======  ===============

Shapes: N output rows, K input columns, M tokens.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass
from typing import Literal, cast

import torch
from torch import Tensor

from .parts import CHUNK, by_parts

try:
    from . import _kernels
except ImportError:  # built without a C compiler
    _kernels = None  # type: ignore[assignment]

Kernel = Literal["own", "torch"]
"""What multiplies a few tokens by a quantised matrix: our extension, or torch's operator."""

GROUP = 32
"""Columns that share a scale."""

Width = Literal[8, 16, 32]
"""Bits that our kernel rounds tokens to; 32 are as good as single precision."""

EXPAND_FROM = 48
"""Tokens from which expanding a matrix and multiplying beats torch's kernels."""

EXPANDED_FROM = 12
"""The same where the matrix was expanded before and kept."""


@dataclass(frozen=True)
class Int4Weight:
    """A matrix of values ``nibble * scale + minimum``.

    Byte j of a group holds column j in its low and column j + 16 in its high half.
    """

    nibbles: Tensor
    """uint8 (N, K / 2)."""
    scale: Tensor
    """float16 (N, K / 32)."""
    minimum: Tensor
    """float16 (N, K / 32)."""

    @property
    def shape(self) -> tuple[int, int]:
        """(N, K)."""
        return self.nibbles.shape[0], self.nibbles.shape[1] * 2

    def integers(self) -> Tensor:
        """Return the values 0..15 in column order, uint8 (N, K)."""
        rows, columns = self.shape
        packed = self.nibbles.view(rows, -1, 1, GROUP // 2)
        out = torch.empty(
            (rows, columns // GROUP, 2, GROUP // 2), dtype=torch.uint8, device=packed.device
        )
        torch.bitwise_and(packed[:, :, 0], 15, out=out[:, :, 0])
        torch.bitwise_right_shift(packed[:, :, 0], 4, out=out[:, :, 1])
        return out.view(rows, columns)

    def expand(self, dtype: torch.dtype = torch.float32) -> Tensor:
        """Return the matrix (N, K) as ordinary numbers."""
        return by_parts(self.shape, dtype, self.nibbles.device, self._expand_into)

    def _expand_into(self, out: Tensor, part: slice) -> None:
        packed = self.nibbles[part].view(out.shape[0], -1, GROUP // 2)
        halves = out.view(out.shape[0], -1, 2, GROUP // 2)
        halves[:, :, 0] = packed & 15
        halves[:, :, 1] = packed >> 4
        groups = out.view(out.shape[0], -1, GROUP)
        groups.mul_(self.scale[part].float()[..., None])
        groups.add_(self.minimum[part].float()[..., None])

    def to(self, device: torch.device) -> Int4Weight:
        """Return the same on a device."""
        return Int4Weight(self.nibbles.to(device), self.scale.to(device), self.minimum.to(device))

    def check(self) -> None:
        """Check that the parts fit each other.

        :raises ValueError: if they do not.
        """
        _check_types(self.nibbles, torch.uint8, self.scale, self.minimum)
        rows, columns = self.shape
        want = (rows, columns // GROUP)
        if columns % GROUP or self.scale.shape != want or self.minimum.shape != want:
            raise ValueError(
                f"{[rows, columns]} numbers with scales {list(self.scale.shape)} and minima "
                f"{list(self.minimum.shape)}; expected {list(want)}"
            )

    @classmethod
    def stack(cls, parts: list[Int4Weight]) -> Int4Weight:
        """Put matrices of equal K on top of each other."""
        if len(parts) == 1:
            return parts[0]
        return cls(
            torch.cat([each.nibbles for each in parts]),
            torch.cat([each.scale for each in parts]),
            torch.cat([each.minimum for each in parts]),
        )


@dataclass(frozen=True)
class Int8Weight:
    """A matrix of values ``integer * scale``, with one scale per group or per row."""

    integers: Tensor
    """int8 (N, K)."""
    scale: Tensor
    """Floating point (N, groups)."""

    @property
    def shape(self) -> tuple[int, int]:
        """(N, K)."""
        return self.integers.shape[0], self.integers.shape[1]

    def expand(self, dtype: torch.dtype = torch.float32) -> Tensor:
        """Return the matrix (N, K) as ordinary numbers."""
        return by_parts(self.shape, dtype, self.integers.device, self._expand_into)

    def _expand_into(self, out: Tensor, part: slice) -> None:
        out.copy_(self.integers[part])
        groups = out.view(out.shape[0], self.scale.shape[1], -1)
        groups.mul_(self.scale[part].float()[..., None])

    def to(self, device: torch.device) -> Int8Weight:
        """Return the same on a device."""
        return Int8Weight(self.integers.to(device), self.scale.to(device))

    def per_row(self) -> Int8Weight:
        """Return the nearest matrix with one float32 scale per row."""
        if self.scale.shape[1] == 1:
            return self
        pairs = zip(torch.split(self.integers, CHUNK), torch.split(self.scale, CHUNK), strict=True)
        return Int8Weight.stack([_one_scale(*each) for each in pairs])

    def check(self) -> None:
        """Check that the parts fit each other.

        :raises ValueError: if they do not.
        """
        _check_types(self.integers, torch.int8, self.scale)
        rows, columns = self.shape
        fits = self.scale.dim() == 2 and self.scale.shape[0] == rows
        if not fits or not self.scale.shape[1] or columns % self.scale.shape[1]:
            raise ValueError(f"{[rows, columns]} numbers with scales {list(self.scale.shape)}")

    @classmethod
    def stack(cls, parts: list[Int8Weight]) -> Int8Weight:
        """Put matrices of equal K on top of each other."""
        if len(parts) == 1:
            return parts[0]
        return cls(
            torch.cat([each.integers for each in parts]), torch.cat([each.scale for each in parts])
        )


QuantizedWeight = Int4Weight | Int8Weight


def _check_types(integers: Tensor, dtype: torch.dtype, *scales: Tensor) -> None:
    if integers.dtype != dtype or not all(each.is_floating_point() for each in scales):
        kinds = ", ".join(str(each.dtype) for each in (integers, *scales))
        raise ValueError(f"they hold {kinds}; expected {dtype} and floating-point scales")


def _one_scale(integers: Tensor, scale: Tensor) -> Int8Weight:
    """Give each row of a grouped matrix a single scale, without expanding the matrix."""
    rows, columns = integers.shape
    groups = integers.view(rows, scale.shape[1], -1)
    low, high = groups.amin(-1).float(), groups.amax(-1).float()
    wide = scale.float()
    single = (torch.maximum(-low, high) * wide).amax(-1, keepdim=True).div_(127)
    share = wide / torch.where(single > 0, single, torch.ones_like(single))
    rounded = (groups * share[..., None]).round_().to(torch.int8)
    return Int8Weight(rounded.view(rows, columns), single)


def quantize_int4(weight: Tensor) -> Int4Weight:
    """Round a matrix (N, K) to sixteen steps between the extremes of each group.

    K must be a multiple of 32.
    """
    return Int4Weight.stack([_rounded_rows(each) for each in torch.split(weight, CHUNK)])


def _rounded_rows(weight: Tensor) -> Int4Weight:
    rows, columns = weight.shape
    groups = weight.float().reshape(rows, columns // GROUP, GROUP)
    low, high = groups.amin(-1), groups.amax(-1)
    scale = ((high - low) / 15).half()
    minimum = low.half()
    step = torch.where(scale > 0, scale, torch.ones_like(scale)).float()
    nearest = ((groups - minimum.float()[..., None]) / step[..., None]).round_().clamp_(0, 15)
    values = nearest.to(torch.uint8).view(rows, -1, 2, GROUP // 2)
    nibbles = values[:, :, 0] | (values[:, :, 1] << 4)
    return Int4Weight(nibbles.reshape(rows, columns // 2), scale, minimum)


def quantize_int8(weight: Tensor) -> Int8Weight:
    """Round a matrix (N, K) to 255 steps around zero, one scale per row.

    The scales are in half precision, unless one of them is too small or too large for that.
    """
    integers = torch.empty(weight.shape, dtype=torch.int8, device=weight.device)
    scale = weight.abs().amax(-1, keepdim=True).float().div_(127)
    half = scale.half()
    if bool(((half >= _SMALLEST) | (scale == 0)).all() & half.isfinite().all()):
        scale = half
    step = torch.where(scale > 0, scale, torch.ones_like(scale)).float()
    for start in range(0, weight.shape[0], CHUNK):
        part = slice(start, start + CHUNK)
        nearest = (weight[part] / step[part]).round_().clamp_(-127, 127)
        integers[part] = nearest.to(torch.int8)
    return Int8Weight(integers, scale)


_SMALLEST = 2.0**-14
"""The least half-precision number that has all of its bits."""


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
    ) -> Tensor:
        """Return the product, float32 (M, N), of contiguous float32 ``x`` (M, K).

        :param norm: weight (K) of an RMS norm that ``x`` goes through first.
        :param gated: the first half of the product gates the second: (M, N / 2).
        :param onto: (M, N) that the product is added to, in place.
        """
        if onto is None:
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
        )
        return onto


_WRITE, _ADD, _GATE = 0, 1, 2
BLOCK = 8  # rows that are packed together


def suits_own(weight: QuantizedWeight) -> bool:
    """Tell whether :func:`multiply_own` takes this matrix on this processor."""
    if not has_own_kernel() or weight.scale.dtype != torch.float16:
        return False
    tensors = [each for each in vars(weight).values() if isinstance(each, Tensor)]
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


_FORM = 4


def width_for(stem: str, layers: int) -> Width:
    """Choose the bits that the tokens of an int4 matrix are rounded to.

    Where 8 bits are felt most, 16 are taken: in the projection to queries, keys and values, in the
    last block, and in the head.

    :param stem: name of the matrix in the model.
    :param layers: blocks of the model.
    """
    parts = stem.split(".")
    if "layers" not in parts or parts[-1] == "query_key_value" or str(layers - 1) in parts:
        return 16
    return 8


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
