"""Second stage: a text encoder whose states tell which emoji a wish is about."""

from __future__ import annotations

import random
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .captions import caption
from .choice import weight
from .data import Emoji

if TYPE_CHECKING:
    from transformers import CLIPTextModel, CLIPTokenizer

    from .loop import Loss

SHORT = 12
"""Most wishes are cut to this many tokens while learning, which costs a third."""
TEACHER_WEIGHT = 1.0


class TextLearner(nn.Module):
    """A text encoder with what it is trained by: a row for each emoji, a map to the teacher."""

    def __init__(self, encoder: CLIPTextModel, emoji: int, teacher: int = 0) -> None:
        super().__init__()
        width = encoder.config.hidden_size
        self.encoder = encoder
        self.rows = nn.Parameter(torch.randn(emoji, width) / width**0.5)
        self.scale = nn.Parameter(torch.tensor(10.0))
        self.like_teacher = nn.Linear(width, teacher) if teacher else None

    def forward(self, ids: Tensor) -> tuple[Tensor, Tensor]:
        """Return the states at the end of the wish and at its last padding, ``(B, E)`` each."""
        states = self.encoder(input_ids=ids).last_hidden_state
        ends = (ids == self.encoder.config.eos_token_id).int().argmax(1)
        return states[torch.arange(len(ids)), ends], states[:, -1]

    def scores(self, states: Tensor) -> Tensor:
        """Return how well each emoji fits, as logits, ``(B, emoji)``."""
        rows = F.normalize(self.rows, dim=-1)
        return self.scale * F.normalize(states, dim=-1) @ rows.T


class Wishes:
    """Captions to draw batches from: half English, half Chinese, each with its emoji."""

    def __init__(self, emoji: Sequence[Emoji], tokenizer: CLIPTokenizer) -> None:
        self.emoji, self.tokenizer = emoji, tokenizer
        self.weights = [weight(each) for each in emoji]

    def batch(self, size: int, generator: torch.Generator) -> tuple[list[str], Tensor]:
        """Draw wishes and the numbers of their emoji, ``(size,)``."""
        dice = random.Random(int(torch.randint(2**62, (), generator=generator)))
        rows = dice.choices(range(len(self.emoji)), self.weights, k=size)
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


def text_loss(
    learner: TextLearner,
    wishes: Wishes,
    batch: int,
    taught: tuple[Sequence[str], Tensor] | None = None,
) -> Loss:
    """Return the loss of one step of the text encoder.

    :param taught: texts, and what the teacher makes of them: unit vectors ``(N, teacher)``.
    """
    device = next(learner.parameters()).device
    known = None
    if taught is not None:
        known = token_ids(wishes.tokenizer, taught[0])

    def loss(generator: torch.Generator) -> Tensor:
        texts, rows = wishes.batch(batch, generator)
        ids = token_ids(wishes.tokenizer, texts)
        if torch.rand((), generator=generator) < 0.85:
            ids = _cut(ids)
        states = learner(ids.to(device))
        rows = rows.to(device)
        total = sum(
            (F.cross_entropy(learner.scores(each), rows) for each in states), torch.zeros(())
        )
        if taught is None or known is None or learner.like_teacher is None:
            return total / 2
        some = torch.randint(len(known), (batch // 2,), generator=generator)
        likeness = learner.like_teacher(learner(_cut(known[some]).to(device))[0])
        apart = 1 - F.cosine_similarity(likeness, taught[1][some].to(device))
        return total / 2 + TEACHER_WEIGHT * apart.mean()

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
        [encoder(input_ids=part).last_hidden_state.half() for part in ids.split(batch)]
    )
