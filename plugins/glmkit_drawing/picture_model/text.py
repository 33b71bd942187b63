"""Second stage: a text encoder whose states tell which emoji a wish is about."""

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


class TextLearner(nn.Module):
    """A text encoder with what it is trained by: a row for each emoji."""

    def __init__(self, encoder: CLIPTextModel, emoji: int, *, end: int) -> None:
        super().__init__()
        width = encoder.config.hidden_size
        self.encoder = encoder
        self.end = end
        self.rows = nn.Parameter(torch.randn(emoji, width) / width**0.5)
        self.scale = nn.Parameter(torch.tensor(10.0))

    def forward(self, ids: Tensor) -> tuple[Tensor, Tensor]:
        """Return the states at the end of the wish and at its last padding, ``(B, E)`` each."""
        states = self.encoder(input_ids=ids).last_hidden_state
        ends = (ids - self.end).abs().argmin(1)
        return states[torch.arange(len(ids)), ends], states[:, -1]

    def scores(self, states: Tensor) -> Tensor:
        """Return how well each emoji fits, as logits, ``(B, emoji)``."""
        rows = F.normalize(self.rows, dim=-1)
        return self.scale * F.normalize(states, dim=-1) @ rows.T


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
    """Return the loss of one step: cross entropy of the emoji that a wish is about.

    It is told from the state at the wish's end and from the one at the last padding alike, since
    the denoiser sees both.
    """
    device = next(learner.parameters()).device

    def loss(generator: torch.Generator) -> Tensor:
        texts, rows = wishes.batch(batch, generator)
        ids = token_ids(wishes.tokenizer, texts)
        if torch.rand((), generator=generator) < 0.85:
            ids = _cut(ids)
        scores = [learner.scores(states) for states in learner(ids.to(device))]
        return F.cross_entropy(torch.cat(scores), rows.repeat(2).to(device))

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
