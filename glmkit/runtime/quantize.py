"""Weight-only quantised matrices: int4 in groups of 32, int8 per group or per row.

On disk a quantised matrix is plain integers with half-precision scales, the same on every
machine. What multiplies by it is in `kernels.py`, the layers that use these are in `linears.py`.

Shapes: N output rows, K input columns, M tokens.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from .parts import CHUNK, by_parts

GROUP = 32
"""Columns that share a scale."""


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
