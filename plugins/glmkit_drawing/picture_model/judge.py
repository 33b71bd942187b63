"""A judge of drawn pictures: which emoji is nearest, by a network that never meets the model.

It learns to tell all emoji apart while they are moved, turned, resized, blurred, recoloured a
little and covered with noise; pictures are then compared by the direction of its last layer but
one.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .data import Emoji
from .vae import as_tensor

if TYPE_CHECKING:
    from .loop import Loss

SCALE, MARGIN = 20.0, 0.2


class Judge(nn.Module):
    """Pictures to unit vectors, and a row for each emoji that it is trained with."""

    def __init__(self, emoji: int, width: int = 32, size: int = 128) -> None:
        super().__init__()
        widths = (3, width, 2 * width, 4 * width, 8 * width)
        layers: list[nn.Module] = []
        for before, after in zip(widths, widths[1:], strict=False):
            layers += [nn.Conv2d(before, after, 3, stride=2, padding=1), nn.GroupNorm(4, after)]
            layers += [nn.SiLU()]
        self.body = nn.Sequential(*layers, nn.Flatten(), nn.LazyLinear(size))
        self.rows = nn.Parameter(torch.randn(emoji, size))

    def forward(self, pictures: Tensor) -> Tensor:
        """Return unit vectors of pictures in [-1, 1], ``(B, 3, H, W)`` to ``(B, D)``."""
        return F.normalize(self.body(pictures), dim=-1)

    def likeness(self, vectors: Tensor) -> Tensor:
        """Return the cosine to every emoji's row, ``(B, emoji)``."""
        return vectors @ F.normalize(self.rows, dim=-1).T


def new_judge(emoji: int, picture: int = 64) -> Judge:
    """Return an untrained judge of pictures ``picture`` pixels wide."""
    judge = Judge(emoji)
    judge(torch.zeros(1, 3, picture, picture))  # settles the lazy layer's size
    return judge


def pictures_of(emoji: Sequence[Emoji]) -> Tensor:
    """Return the emoji's pictures in [-1, 1], ``(N, 3, 64, 64)``."""
    return as_tensor(np.stack([each.picture for each in emoji]))


def judge_loss(judge: Judge, pictures: Tensor, batch: int) -> Loss:
    """Return the loss of one step: cross entropy of cosines, the right one handicapped."""
    device = next(judge.parameters()).device

    def loss(generator: torch.Generator) -> Tensor:
        rows = torch.randint(len(pictures), (batch,), generator=generator)
        seen = disturbed(pictures[rows], generator).to(device)
        likeness = judge.likeness(judge(seen))
        handicap = MARGIN * F.one_hot(rows, len(pictures)).to(device)
        return F.cross_entropy(SCALE * (likeness - handicap), rows.to(device))

    return loss


def disturbed(pictures: Tensor, generator: torch.Generator) -> Tensor:
    """Move, turn, resize, blur and recolour pictures and add noise, each in its own way."""
    size = len(pictures)

    def between(low: float, high: float, *shape: int) -> Tensor:
        return low + (high - low) * torch.rand(size, *shape, generator=generator)

    angle, zoom = between(-0.2, 0.2) * math.pi / 2, between(0.85, 1.2)
    turn = torch.stack([angle.cos(), -angle.sin(), angle.sin(), angle.cos()], 1).view(-1, 2, 2)
    where = torch.cat([turn * zoom.view(-1, 1, 1), between(-0.15, 0.15, 2, 1)], dim=2)
    grid = F.affine_grid(where, list(pictures.shape), align_corners=False)
    # Outside lies white: the pictures are moved below 0, where the padding's zeros are white.
    pictures = F.grid_sample(pictures - 1, grid, align_corners=False) + 1
    coarse = F.avg_pool2d(pictures, 4)
    blurred = F.interpolate(coarse, scale_factor=4, mode="bilinear", align_corners=False)
    share = between(-0.3, 0.9, 1, 1, 1).clamp(min=0)
    pictures = share * blurred + (1 - share) * pictures
    pictures = 1 - (1 - pictures) * between(0.7, 1.2, 3, 1, 1)
    noise = torch.randn(pictures.shape, generator=generator)
    return pictures + between(0, 0.15, 1, 1, 1) * noise


@torch.no_grad()
def nearest(judge: Judge, drawn: Tensor, pictures: Tensor) -> Tensor:
    """Return the number of the nearest picture for each drawn one, ``(B,)``; all in [-1, 1]."""
    known = torch.cat([judge(part) for part in torch.split(pictures, 256)])
    found: Tensor = (judge(drawn) @ known.T).argmax(1)
    return found
