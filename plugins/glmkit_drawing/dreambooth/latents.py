"""Pictures as the net sees them: encoded once, before anything is learnt.

Letters: V variants of a picture, C channels and h x w of a latent picture.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from .photographs import numbers, opened, squares


@torch.no_grad()
def encoded(
    vae: Any,  # noqa: ANN401
    files: Sequence[Path],
    side: int,
    *,
    crops: int = 1,
    flip: bool = False,
) -> list[Tensor]:
    """Return for each picture the means and spreads of its variants (V, 2, C, h, w).

    :raises DataError: if one cannot be read.
    """
    found = []
    for file in files:
        variants = squares(opened(file), side, count=crops, flip=flip)
        pixels = torch.from_numpy(numbers(variants)).to(vae.device, vae.dtype)
        found.append(_scaled(vae, vae.encode(pixels)))
    return found


def _scaled(vae: Any, found: Any) -> Tensor:  # noqa: ANN401
    """Return means and spreads in the net's own unit."""
    drawn = getattr(found, "latent_dist", None)
    if drawn is None:  # an encoder that draws nothing
        mean, spread = found.latents, torch.zeros_like(found.latents)
    else:
        mean, spread = drawn.mean, drawn.std
    shift = getattr(vae.config, "shift_factor", None) or 0.0
    factor = vae.config.scaling_factor
    return torch.stack(((mean - shift) * factor, spread * factor), dim=1).float().cpu()
