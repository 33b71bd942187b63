"""Third stage: a denoiser of latents that follows what the text encoder says."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from .captions import caption
from .choice import weight
from .data import Emoji
from .text import states_of, token_ids

if TYPE_CHECKING:
    from diffusers import DDIMScheduler, UNet2DConditionModel
    from transformers import CLIPTextModel, CLIPTokenizer

    from .loop import Loss

DROPPED = 0.1
"""Share of pictures that are learned without their wish, which guidance needs."""
FIRST = 0.3
"""Share of pictures learned at the first step of drawing, where nothing but noise is seen."""
SNR_LIMIT = 5.0
"""Above this ratio of signal to noise, a step counts less: there, little is left to draw."""


@dataclass(frozen=True)
class LatentSet:
    """Latents of emoji and what the denoiser sees of their wishes."""

    latents: Tensor
    """``(N, C, h, w)``."""
    states: Tensor
    """Of several wishes for each, ``(N, K, T, E)`` in half precision."""
    nothing: Tensor
    """Of the empty wish, ``(T, E)``."""
    weights: Tensor
    """How often each is learned, ``(N,)``."""


def latent_set(
    emoji: Sequence[Emoji],
    latents: Tensor,
    encoder: CLIPTextModel,
    tokenizer: CLIPTokenizer,
    *,
    wishes: int,
    seed: int = 0,
) -> LatentSet:
    """Put together what the denoiser learns: ``wishes`` ways to ask for every emoji.

    The first two are the English and the Chinese name as they are.
    """
    dice = random.Random(seed)
    texts: list[str] = []
    for each in emoji:
        drawn = [caption(each, dice, chinese=bool(at % 2)) for at in range(wishes - 2)]
        texts += [*each.names, *drawn]
    states = states_of(encoder, token_ids(tokenizer, ["", *texts]))
    return LatentSet(
        latents,
        states[1:].reshape(len(emoji), wishes, *states.shape[1:]),
        states[0],
        torch.tensor([weight(each) for each in emoji]),
    )


def unet_loss(
    unet: UNet2DConditionModel, scheduler: DDIMScheduler, data: LatentSet, batch: int
) -> Loss:
    """Return the loss of one step: how far the foretold velocity is off."""
    device = next(unet.parameters()).device
    kept = scheduler.alphas_cumprod.double()
    ratio = kept / (1 - kept)
    importance = (SNR_LIMIT / (ratio + 1)).clamp(max=1).float()

    def loss(generator: torch.Generator) -> Tensor:
        rows = torch.multinomial(data.weights, batch, replacement=True, generator=generator)
        wishes = torch.randint(data.states.shape[1], (batch,), generator=generator)
        states = data.states[rows, wishes].float()
        dropped = torch.rand(batch, generator=generator) < DROPPED
        states[dropped] = data.nothing.float()
        times = draw_times(batch, len(kept), generator)
        latents = data.latents[rows]
        noise = torch.randn(latents.shape, generator=generator)
        seen = scheduler.add_noise(latents, noise, times)
        wanted = scheduler.get_velocity(latents, noise, times).to(device)
        shown = seen.to(device, memory_format=torch.channels_last)
        drawn = unet(shown, times.to(device), states.to(device)).sample
        apart = (drawn - wanted).square().mean((1, 2, 3))
        total: Tensor = (apart * importance[times].to(device)).mean()
        return total

    return loss


def draw_times(batch: int, steps: int, generator: torch.Generator) -> Tensor:
    """Draw steps of the noise schedule, late ones more often, ``(batch,)`` in [0, steps)."""
    late = torch.rand(batch, generator=generator) ** (1 / 3)
    first = torch.rand(batch, generator=generator) < FIRST
    times = (late * steps).long().clamp(max=steps - 1)
    return torch.where(first, steps - 1, times)
