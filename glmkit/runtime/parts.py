"""Working a large matrix out some rows at a time, so that no second copy of it is made.

Shapes: N rows, K columns.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

CHUNK = 512
"""Rows converted at a time: few enough to stay in the processor's cache."""

_CHUNK_ELSEWHERE = 8192
"""The same on other devices, where each operation costs a launch."""


def by_parts(
    shape: tuple[int, int],
    dtype: torch.dtype,
    device: torch.device,
    fill: Callable[[Tensor, slice], None],
) -> Tensor:
    """Return a matrix (N, K) that ``fill`` gives in float32, some rows at a time."""
    rows, columns = shape
    out = torch.empty(shape, dtype=dtype, device=device)
    step = CHUNK if device.type == "cpu" else _CHUNK_ELSEWHERE
    wide = None
    if dtype != torch.float32:
        wide = torch.empty((min(step, rows), columns), dtype=torch.float32, device=device)
    for start in range(0, rows, step):
        part = slice(start, min(start + step, rows))
        if wide is None:
            fill(out[part], part)
            continue
        some = wide[: part.stop - start]
        fill(some, part)
        out[part] = some
    return out
