"""First stage: an autoencoder that turns pictures into small latents and back."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from .choice import is_learned
from .data import Emoji

if TYPE_CHECKING:
    from diffusers import AutoencoderKL

    from .loop import Loss

NOISE = 0.03
"""Deviation of the noise on latents while learning, against their own."""
SQUARE_WEIGHT, EDGE_WEIGHT = 2.0, 0.5
"""Of squared errors, and of the error in the differences of neighbouring pixels."""
CUT = 0.85
"""Share of steps that see a quarter of each picture."""
SHIFT = 4
"""How far a picture is moved at most before it is learnt, in pixels."""


class PictureSet:
    """Pictures to draw batches from, the plain wishes' emoji more often than flags and skins."""

    def __init__(self, emoji: Sequence[Emoji]) -> None:
        self.pictures = as_tensor(np.stack([each.picture for each in emoji]))
        self.weights = torch.tensor([_weight(each) for each in emoji])

    def batch(self, size: int, generator: torch.Generator) -> Tensor:
        """Draw pictures in [-1, 1], moved and recoloured at random, ``(size, 3, H, W)``."""
        rows = torch.multinomial(self.weights, size, replacement=True, generator=generator)
        return torch.stack([_changed(self.pictures[row], generator) for row in rows])


def as_tensor(pictures: np.ndarray) -> Tensor:
    """Turn bytes ``(N, H, W, 3)`` into floats in [-1, 1], ``(N, 3, H, W)``."""
    return torch.from_numpy(pictures).permute(0, 3, 1, 2).float() / 127.5 - 1


def _weight(emoji: Emoji) -> float:
    if emoji.skin:
        return 0.1
    return 1.0 if is_learned(emoji) else 0.4


def _changed(picture: Tensor, generator: torch.Generator) -> Tensor:
    """Move, mirror, recolour: the autoencoder shall also serve pictures that are no emoji."""
    dice = torch.rand(3, generator=generator).tolist()
    shift = torch.randint(-SHIFT, SHIFT + 1, (2,), generator=generator).tolist()
    picture = picture.roll(shift, (1, 2))
    if dice[0] < 0.5:
        picture = picture.flip(2)
    if dice[1] < 0.3:
        picture = picture[torch.randperm(3, generator=generator)]
    return -picture if dice[2] < 0.03 else picture


def vae_loss(
    vae: AutoencoderKL,
    data: PictureSet,
    batch: int,
    *,
    decoder_only: bool = False,
) -> Loss:
    """Return the loss of one step of the autoencoder, or of its decoder alone.

    The latents are disturbed a little against their own spread. More noise, or absolute errors
    alone, and the decoder begins by painting white whatever the latents say, and stays there.
    """
    device = next(vae.parameters()).device

    def loss(generator: torch.Generator) -> Tensor:
        pictures = _part(data.batch(batch, generator), generator)
        pictures = pictures.to(device, memory_format=torch.channels_last)
        with torch.set_grad_enabled(not decoder_only):
            mean = vae.quant_conv(vae.encoder(pictures)).chunk(2, dim=1)[0]
        noise = torch.randn(mean.shape, generator=generator).to(device)
        latents = mean + NOISE * mean.detach().std() * noise
        return picture_error(vae.decoder(vae.post_quant_conv(latents)), pictures)

    return loss


def _part(pictures: Tensor, generator: torch.Generator) -> Tensor:
    """Cut a quarter out of the pictures, mostly: steps are then cheap, and early on they count."""
    if torch.rand((), generator=generator) > CUT:
        return pictures
    side = pictures.shape[-1] // 2
    top, left = torch.randint(side + 1, (2,), generator=generator).tolist()
    return pictures[:, :, top : top + side, left : left + side]


def picture_error(drawn: Tensor, wanted: Tensor) -> Tensor:
    """Return how far pictures are apart, in colours and in edges; ``(B, 3, H, W)`` to a scalar."""
    apart = drawn - wanted
    edges = apart.diff(dim=2).abs().mean() + apart.diff(dim=3).abs().mean()
    return apart.abs().mean() + SQUARE_WEIGHT * apart.square().mean() + EDGE_WEIGHT * edges


@torch.no_grad()
def standardise(vae: AutoencoderKL, pictures: Tensor) -> None:
    """Give every latent channel mean 0 and deviation 1 over ``pictures``, in [-1, 1].

    The change goes into the 1x1 convolutions around the latents, so that a scaling factor of 1
    fits and pictures come out as before.
    """
    latents = latents_of(vae, pictures)
    mean, deviation = latents.mean((0, 2, 3)), latents.std((0, 2, 3))
    size = len(mean)
    before, after = vae.quant_conv, vae.post_quant_conv
    before.weight[:size] /= deviation.view(-1, 1, 1, 1)
    before.bias[:size] = (before.bias[:size] - mean) / deviation
    before.weight[size:] = 0
    before.bias[size:] = 2 * math.log(NOISE)
    after.bias += (after.weight[:, :, 0, 0] * mean).sum(1)
    after.weight *= deviation.view(1, -1, 1, 1)


@torch.no_grad()
def latents_of(vae: AutoencoderKL, pictures: Tensor, batch: int = 64) -> Tensor:
    """Return the means of the latents of pictures in [-1, 1], ``(N, C, h, w)``."""
    return torch.cat([vae.encode(part).latent_dist.mean for part in torch.split(pictures, batch)])
