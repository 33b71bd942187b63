"""Second stage: a text encoder whose states tell what a wish's picture looks like.

A state is a code of the picture's latents, from which these follow by a matrix. What to draw is
thus learned here, by the cheapest of the networks; the denoiser only learns to read codes, which
is one thing for all pictures instead of another for each.
"""

from __future__ import annotations

import random
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .captions import caption
from .data import Emoji

if TYPE_CHECKING:
    from transformers import CLIPTextModel, CLIPTokenizer

    from .loop import Loss

SHORT = 12
"""Most wishes are cut to this many tokens while learning, which costs a third."""
CODE_WEIGHT = 2.0
"""Of the squared error of the codes, against the cross entropy."""


class TextLearner(nn.Module):
    """A text encoder with what it is trained by: the code of each emoji, ``(emoji, E)``."""

    codes: Tensor

    def __init__(self, encoder: CLIPTextModel, codes: Tensor, *, end: int) -> None:
        super().__init__()
        self.encoder = encoder
        self.end = end
        self.register_buffer("codes", codes, persistent=False)
        self.scale = nn.Parameter(torch.tensor(10.0))

    def forward(self, ids: Tensor) -> tuple[Tensor, Tensor]:
        """Return the states at the end of the wish and at its last padding, ``(B, E)`` each."""
        states = self.encoder(input_ids=ids).last_hidden_state
        ends = (ids - self.end).abs().argmin(1)
        return states[torch.arange(len(ids)), ends], states[:, -1]

    def scores(self, states: Tensor) -> Tensor:
        """Return how well each emoji fits, as logits, ``(B, emoji)``."""
        codes = F.normalize(self.codes, dim=-1)
        scores: Tensor = self.scale * F.normalize(states, dim=-1) @ codes.T
        return scores


def codes_of(latents: Tensor, width: int) -> Tensor:
    """Return codes of latents ``(N, C, h, w)``: ``(N, width)``, each of mean square 1.

    These are the coordinates along the main directions of the latents, the large ones damped, so
    that details count too. The mean is left in: a code's length is lost, and the mean, which all
    pictures share, tells it.
    """
    flat = latents.flatten(1)
    _, spread, directions = torch.linalg.svd(flat, full_matrices=False)
    codes = flat @ directions[:width].T / spread[:width].sqrt()
    codes = F.normalize(F.pad(codes, (0, width - codes.shape[1])), dim=-1)
    scaled: Tensor = codes * width**0.5
    return scaled


class Wishes:
    """Captions to draw batches from: half English, half Chinese, each with its emoji."""

    def __init__(self, emoji: Sequence[Emoji], tokenizer: CLIPTokenizer) -> None:
        self.emoji, self.tokenizer = emoji, tokenizer

    def batch(self, size: int, generator: torch.Generator) -> tuple[list[str], Tensor]:
        """Draw wishes and the numbers of their emoji, ``(size,)``."""
        dice = random.Random(int(torch.randint(2**62, (), generator=generator)))
        rows = dice.choices(range(len(self.emoji)), k=size)
        texts = [caption(self.emoji[row], dice, chinese=dice.random() < 0.5) for row in rows]
        return texts, torch.tensor(rows)


def token_ids(tokenizer: CLIPTokenizer, texts: Iterable[str]) -> Tensor:
    """Return the ids of texts, padded to the longest prompt, ``(B, T)``."""
    ids: Tensor = tokenizer(
        list(texts),
        padding="max_length",
        max_length=tokenizer.model_max_length,
        truncation=True,
        return_tensors="pt",
    ).input_ids
    return ids


def text_loss(learner: TextLearner, wishes: Wishes, batch: int) -> Loss:
    """Return the loss of one step: how far states are from the code of the emoji wished for.

    Both as a squared error and as the cross entropy among all emoji, at the wish's end and at its
    last padding alike, since the denoiser sees both.
    """
    device = next(learner.parameters()).device

    def loss(generator: torch.Generator) -> Tensor:
        texts, rows = wishes.batch(batch, generator)
        ids = token_ids(wishes.tokenizer, texts)
        if torch.rand((), generator=generator) < 0.85:
            ids = _cut(ids)
        states, wanted = torch.cat(learner(ids.to(device))), rows.repeat(2).to(device)
        apart = F.mse_loss(states, learner.codes[wanted])
        return F.cross_entropy(learner.scores(states), wanted) + CODE_WEIGHT * apart

    return loss


def _cut(ids: Tensor) -> Tensor:
    """Cut wishes to their first tokens; a longer one then ends as the others do."""
    ids = ids[:, :SHORT].clone()
    ids[:, -1] = ids.max()
    return ids


@torch.no_grad()
def states_of(encoder: CLIPTextModel, ids: Tensor, batch: int = 256) -> Tensor:
    """Return what the denoiser sees of wishes, in half precision, ``(N, T, E)``."""
    return torch.cat(
        [encoder(input_ids=part).last_hidden_state.half() for part in torch.split(ids, batch)]
    )
