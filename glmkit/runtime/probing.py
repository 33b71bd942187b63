"""Whether merging did what it should: matrices rounded and compared, and scores on a probe.

Shapes: T tokens of the probe, V entries of the vocabulary.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import cast

import torch
from torch import Tensor

from ..errors import CheckpointError
from ..models.causal import CausalModel, ModelConfig
from .adapters import LowRank

_BLOCK = 1024
"""Rows of a matrix that are compared at once."""
_NOISE = 2.0**-20
"""Share of the terms of a sum that its order may cost in float32."""
_DRIFT: Mapping[torch.dtype, float] = {
    torch.float32: 1e-3,
    torch.float16: 0.03,
    torch.bfloat16: 0.15,
}
"""Share of the largest score that rounding the merged matrices may cost, by dtype."""


def rounded(whole: Tensor, dtype: torch.dtype, name: str) -> Tensor:
    """Return a merged matrix in the precision that it is kept in.

    :raises CheckpointError: if a number in it is too large for that.
    """
    merged = whole.to(dtype)
    if not bool(torch.isfinite(merged).all()):
        raise CheckpointError(f"merged, {name} overflows {dtype}; lower the weights")
    return merged


def furthest_off(merged: Tensor, plain: Tensor, parts: Sequence[tuple[LowRank, float]]) -> float:
    """Compare a merged matrix with the plain one and its changes, number by number.

    The sum is taken another way than in merging, so that a mistake there shows.

    :param parts: the changes of these rows, each with its weight.
    :return: how far a number is beyond what rounding explains; 0: none is.
    """
    worst = 0.0
    for start in range(0, merged.shape[0], _BLOCK):
        rows = slice(start, start + _BLOCK)
        expected, size = plain[rows].float(), plain[rows].float().abs()
        for part, weight in parts:
            b, a = part.b[rows].float() * (part.scale * weight), part.a.float()
            expected, size = expected + b @ a, size + b.abs() @ a.abs()
        fine = torch.finfo(merged.dtype)
        allowed = expected.abs() * (fine.eps / 2) + size * _NOISE + fine.smallest_normal * fine.eps
        beyond = (merged[rows].float() - expected).abs() - allowed
        worst = max(worst, float(beyond.nan_to_num(nan=torch.inf).max()))
    return worst


def check_scores(worn: Tensor, merged: Tensor, dtype: torch.dtype) -> None:
    """Check that a model that was merged in memory answers as it did with its adapters on.

    :raises CheckpointError: if scores differ by more than rounding to ``dtype`` explains.
    """
    error = apart(worn, merged)
    allowed = _DRIFT.get(dtype, _DRIFT[torch.bfloat16]) * float(worn.abs().max())
    if not error <= allowed:
        raise CheckpointError(
            f"the merged model is not base + adapter: scores differ by up to {error:.3g}, and "
            f"rounding to {dtype} explains {allowed:.3g}; it is as before: leave the adapter "
            "unmerged"
        )


def scores(model: CausalModel) -> Tensor:
    """Return the scores of a fixed row of tokens, float32 (1, T, V)."""
    with torch.inference_mode():
        ids = torch.tensor([_probe(model.config)], device=model.like.device)
        return cast(Tensor, model(ids)).float().cpu()


def _probe(config: ModelConfig) -> list[int]:
    """Return a row of tokens from all over the vocabulary, as the model can read it."""
    ids = [1 + at * (config.vocab_size - 2) // 16 for at in range(16)]
    special = [getattr(config, each, None) for each in ("gmask", "bos")]
    own = [each for each in special if each is not None]  # generation 1 needs both, once
    plain = [each for each in ids if each not in (*own, getattr(config, "mask", None))]
    return [*plain[:8], *own, *plain[8:]]


def apart(one: Tensor, other: Tensor) -> float:
    """Return the largest difference."""
    return float((one - other).abs().max())
