"""The official int4 and int8 checkpoints of ChatGLM and ChatGLM2, read without loss.

On disk a linear has ``weight``, int8 (N, K), and ``weight_scale`` (N): symmetric steps, one size
per row. Of four bits, (N, K / 2), a byte holds column 2j in its high and column 2j + 1 in its low
half, both signed. A value is ``integer * scale``; our form of it gives exactly the same numbers.

Shapes: N output rows, K input columns.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from ..errors import CheckpointError
from .quantize import GROUP, Int4Weight, Int8Weight, QuantizedWeight

BITS = (4, 8)
_CHUNK = 2048
"""Rows that are repacked at a time."""


def bits_of(raw: Mapping[str, Any]) -> int | None:
    """Return the ``quantization_bit`` of a parsed config.json, None where it names none.

    :raises CheckpointError: if it is neither 4 nor 8.
    """
    bits = raw.get("quantization_bit")
    if bits is None or (bits == 0 and type(bits) is int):
        return None
    if type(bits) is not int or bits not in BITS:
        raise CheckpointError(
            f"config.json: quantization_bit is {bits!r}; official checkpoints have 4 or 8, or 0 "
            "where they are not quantised"
        )
    return bits


def from_official(
    stem: str, weight: Tensor, scale: Tensor, shape: tuple[int, ...], bits: int | None
) -> QuantizedWeight:
    """Return a matrix of an official file in our own form.

    :param stem: the matrix' name, for errors.
    :param weight: int8 (N, K) or (N, K / 2).
    :param scale: (N).
    :param shape: (N, K), as config.json promises.
    :param bits: what config.json says; None: as the shape tells.
    :raises CheckpointError: if the parts do not fit each other or ``bits``.
    """
    rows, columns = shape
    found = {columns: 8, columns / 2: 4}.get(weight.shape[-1])
    if weight.dim() != 2 or weight.shape[0] != rows or found is None:
        raise CheckpointError(
            f"{stem}.weight is int8 {list(weight.shape)}; config.json says {list(shape)} numbers "
            f"of 8 bits, or {[rows, columns // 2]} pairs of 4; the files belong to different models"
        )
    if bits is not None and bits != found:
        raise CheckpointError(
            f"{stem}.weight holds numbers of {found} bits, but config.json says quantization_bit "
            f"{bits}; the files belong to different models"
        )
    if tuple(scale.shape) != (rows,) or not scale.is_floating_point():
        raise CheckpointError(
            f"{stem}.weight_scale is {scale.dtype} {list(scale.shape)}; expected one scale for "
            f"each of the {rows} rows; fetch the files again"
        )
    if found == 8:
        return Int8Weight(weight, _column(scale))
    return _four(weight, scale)


def _column(scale: Tensor) -> Tensor:
    """Return the scales as (N, 1), in half precision where that loses nothing."""
    half = scale.half()
    return (half if torch.equal(half.to(scale.dtype), scale) else scale.float())[:, None]


def _four(weight: Tensor, scale: Tensor) -> QuantizedWeight:
    """Repack signed pairs; one scale per row becomes the same scale for each group of columns."""
    column = _column(scale)
    least = column.mul(-8)  # 3 bits up: exact in half precision too, while it is finite
    rows, columns = weight.shape[0], 2 * weight.shape[1]
    if columns % GROUP or column.dtype != torch.float16 or not bool(least.isfinite().all()):
        whole = torch.empty((rows, columns), dtype=torch.int8)
        for part in _parts(rows):
            whole[part] = _unsigned(weight[part]).to(torch.int8).sub_(8)
        return Int8Weight(whole, column)
    nibbles = torch.empty((rows, columns // 2), dtype=torch.uint8)
    for part in _parts(rows):
        halves = _unsigned(weight[part]).view(-1, columns // GROUP, 2, GROUP // 2)
        nibbles[part] = (halves[:, :, 0] | (halves[:, :, 1] << 4)).flatten(1)
    groups = columns // GROUP
    return Int4Weight(nibbles, column.repeat(1, groups), least.repeat(1, groups))


def _parts(rows: int) -> list[slice]:
    return [slice(start, start + _CHUNK) for start in range(0, rows, _CHUNK)]


def _unsigned(pairs: Tensor) -> Tensor:
    """Return the integers of signed pairs in column order, 8 added to each: uint8 (N, K)."""
    turned = pairs.view(torch.uint8) ^ 0x88  # flipping a half's sign bit adds 8 to it
    return torch.stack((turned >> 4, turned & 15), dim=-1).flatten(1)
