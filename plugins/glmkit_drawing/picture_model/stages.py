"""The stages of training, each from the files of the ones before, all in one work folder."""

from __future__ import annotations

import random
from collections.abc import Generator, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import nn

from glmkit import Progress, UsageError

from . import networks
from .captions import MEASURES, caption, plain
from .choice import is_learned
from .data import Emoji
from .judge import pictures_of
from .loop import Plan, averaged_weights, learn
from .networks import Sizes
from .text import TextLearner, Wishes, codes_of, text_loss
from .tokenizer import train_tokenizer
from .unet import latent_set, unet_loss
from .vae import PictureSet, latents_of, standardise, vae_loss

if TYPE_CHECKING:
    from diffusers import AutoencoderKL, UNet2DConditionModel
    from transformers import CLIPTextModel, CLIPTokenizer

PLANS = {
    "vae": Plan(steps=3600, lr=2e-3, ema=0.995, weight_decay=0.0, warmup=30, cooldown=0.4),
    "text": Plan(steps=2400, lr=2e-3, ema=0.99, weight_decay=0.02, warmup=30, cooldown=0.3),
    "unet": Plan(steps=6000, lr=2e-3, ema=0.995, weight_decay=0.01, cooldown=0.5),
    "decoder": Plan(steps=1500, lr=1e-3, ema=0.99, weight_decay=0.0, cooldown=0.6),
}
"""How each stage of the embedded model was trained."""
BATCHES = {"vae": 12, "text": 128, "unet": 32, "decoder": 12}
FIRST_SPREAD = 8.0
"""By how much the latents are spread before training, so that the decoder heeds them."""


@dataclass(frozen=True)
class Studio:
    """A work folder, the emoji, and how large the networks are."""

    folder: Path
    emoji: Sequence[Emoji]
    sizes: Sizes = field(default_factory=Sizes)
    device: str = "cpu"
    pieces: int = 5000
    """Of English words, that the tokenizer learns."""
    wishes: int = 16
    """Ways to ask for every emoji that the denoiser sees."""

    @cached_property
    def learned(self) -> list[Emoji]:
        """Return the emoji that the model learns to draw."""
        return [each for each in self.emoji if is_learned(each)]

    def checkpoint(self, stage: str) -> Path:
        """Return where a stage keeps its state."""
        return self.folder / f"{stage}.pt"

    def finished(self, stage: str) -> dict[str, torch.Tensor]:
        """Return the averaged weights of a stage.

        :raises UsageError: if it has not been trained yet.
        """
        path = self.checkpoint(stage)
        if not path.exists():
            raise UsageError(f"{path} is not there yet; train the stage '{stage}' first")
        return averaged_weights(path)

    def at_work(self, module: nn.Module) -> None:
        """Move a network to where it is trained."""
        module.to(self.device)
        module.to(memory_format=torch.channels_last)  # type: ignore[call-overload]

    @property
    def tokenizer(self) -> CLIPTokenizer:
        """Return the tokenizer, learning it when it is first asked for."""
        from transformers import CLIPTokenizer

        path = self.folder / "tokenizer"
        if not path.exists():
            _learn_tokenizer(self).save_pretrained(path)
        tokenizer: CLIPTokenizer = CLIPTokenizer.from_pretrained(path)
        return tokenizer


def _learn_tokenizer(studio: Studio) -> CLIPTokenizer:
    dice = random.Random(0)
    emoji = studio.learned
    texts = [caption(each, dice, chinese=bool(at % 2)) for each in emoji for at in range(40)]
    texts += [plain(text) for each in emoji for text in each.names]
    texts += [plain(tag) for each in emoji for tags in each.tags for tag in tags]
    return train_tokenizer([*texts, *MEASURES], pieces=studio.pieces, tokens=studio.sizes.tokens)


def train_vae(studio: Studio, plan: Plan, batch: int) -> Generator[Progress, None, nn.Module]:
    """Train the autoencoder."""
    torch.manual_seed(plan.seed)
    vae = networks.new_vae(studio.sizes)
    with torch.no_grad():
        vae.quant_conv.weight.mul_(FIRST_SPREAD)
    studio.at_work(vae)
    loss = vae_loss(vae, PictureSet(studio.emoji), batch)
    return (yield from learn(vae, loss, plan, studio.checkpoint("vae"), stage="vae"))


def train_decoder(studio: Studio, plan: Plan, batch: int) -> Generator[Progress, None, nn.Module]:
    """Train the decoder further, while the latents stay what they are."""
    vae = vae_of(studio)
    vae.encoder.requires_grad_(False)
    vae.quant_conv.requires_grad_(False)
    studio.at_work(vae)
    pictures = PictureSet(studio.emoji)
    loss = vae_loss(vae, pictures, batch, decoder_only=True)
    return (yield from learn(vae, loss, plan, studio.checkpoint("decoder"), stage="decoder"))


def train_text(studio: Studio, plan: Plan, batch: int) -> Generator[Progress, None, nn.Module]:
    """Train the text encoder."""
    torch.manual_seed(plan.seed)
    learner = _text_learner(studio, codes_of(_learned_latents(studio), studio.sizes.text))
    loss = text_loss(learner, Wishes(studio.learned, studio.tokenizer), batch)
    learner.to(studio.device)
    return (yield from learn(learner, loss, plan, studio.checkpoint("text"), stage="text"))


def train_unet(studio: Studio, plan: Plan, batch: int) -> Generator[Progress, None, nn.Module]:
    """Train the denoiser."""
    torch.manual_seed(plan.seed)
    data = latent_set(
        studio.learned,
        _learned_latents(studio),
        text_encoder_of(studio),
        studio.tokenizer,
        wishes=studio.wishes,
    )
    unet = networks.new_unet(studio.sizes)
    studio.at_work(unet)
    loss = unet_loss(unet, networks.new_scheduler(), data, batch)
    return (yield from learn(unet, loss, plan, studio.checkpoint("unet"), stage="unet"))


TRAINERS = {
    "vae": train_vae,
    "text": train_text,
    "unet": train_unet,
    "decoder": train_decoder,
}
"""In the order in which they are trained."""


def vae_of(studio: Studio) -> AutoencoderKL:
    """Return the trained autoencoder, its latents standardised, with the newest decoder."""
    vae = networks.new_vae(studio.sizes)
    if studio.checkpoint("decoder").exists():
        vae.load_state_dict(studio.finished("decoder"))
        return vae.eval()
    vae.load_state_dict(studio.finished("vae"))
    standardise(vae, pictures_of(studio.learned))
    return vae.eval()


def text_encoder_of(studio: Studio) -> CLIPTextModel:
    """Return the trained text encoder."""
    learner = _text_learner(studio, torch.zeros(len(studio.learned), studio.sizes.text))
    learner.load_state_dict(studio.finished("text"))
    encoder = learner.encoder
    encoder.eval()  # type: ignore[no-untyped-call]
    return encoder


def unet_of(studio: Studio) -> UNet2DConditionModel:
    """Return the trained denoiser."""
    unet = networks.new_unet(studio.sizes)
    unet.load_state_dict(studio.finished("unet"))
    return unet.eval()


def _text_learner(studio: Studio, codes: torch.Tensor) -> TextLearner:
    tokenizer = studio.tokenizer
    encoder = networks.new_text_encoder(studio.sizes, len(tokenizer), tokenizer.eos_token_id)
    return TextLearner(encoder, codes, end=tokenizer.eos_token_id)


def _learned_latents(studio: Studio) -> torch.Tensor:
    return latents_of(vae_of(studio), pictures_of(studio.learned))
