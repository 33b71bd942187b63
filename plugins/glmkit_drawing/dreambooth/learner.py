"""The net as a function from pictures with noise to its loss.

Letters: B pictures of a batch, P prompts, T tokens of each, D size of their embeddings.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from glmkit import UsageError
from glmkit.training.learner import Loss, computing_in

from .feed import CLASS, THING, Batch


class Nets(nn.Module):
    """What is trained.

    :param unet: foretells the noise in pictures.
    :param text_encoder: None: it is not trained.
    """

    def __init__(self, unet: nn.Module, text_encoder: nn.Module | None) -> None:
        super().__init__()
        self.unet, self.text_encoder = unet, text_encoder


class PictureLearner(nn.Module):
    """A picture model that is asked for its loss.

    :param model: whatever of it requires gradients is trained.
    :param texts: what the photographs show, and what the class does: embeddings (P, T, D), or
        tokens (P, T) where the text encoder is trained.
    :param mask: of the tokens, where the text encoder takes one.
    :param scheduler: diffusers' DDPMScheduler: which noise is added when, what is foretold.
    :param prior_weight: of pictures of the class.
    :param min_snr: gamma of Min-SNR; 0: all times weigh the same.
    :param computing: what products are taken in; None: as they are.
    """

    def __init__(
        self,
        model: Nets,
        texts: Tensor,
        mask: Tensor | None,
        scheduler: Any,  # noqa: ANN401
        *,
        prior_weight: float = 1.0,
        min_snr: float = 0.0,
        computing: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        self.model, self.scheduler = model, scheduler
        self.prior_weight, self.min_snr, self.computing = prior_weight, min_snr, computing
        self.register_buffer("texts", texts, persistent=False)
        self.register_buffer("mask", mask, persistent=False)
        self.texts: Tensor
        self.foretold: str = scheduler.config.prediction_type
        if self.foretold not in _TARGETS:
            raise UsageError(f"the model foretells {self.foretold!r}; known: {', '.join(_TARGETS)}")

    def forward(self, batch: Batch) -> Loss:
        """Return the squared error of what is foretold, summed over pictures."""
        errors = self.errors(batch)
        thing = (errors * (batch.shows == THING)).sum()
        of_class = (errors * (batch.shows == CLASS)).sum()
        figures = {}  # without a class, the loss is the thing's
        if bool((batch.shows == CLASS).any()):
            figures = {"thing_loss": thing.detach(), "class_loss": of_class.detach()}
        weight = (batch.shows == THING).sum()
        return Loss(thing + self.prior_weight * of_class, weight, figures)

    def errors(self, batch: Batch) -> Tensor:
        """Return the mean squared error (B,) of each picture, weighted by its time."""
        noisy = self.scheduler.add_noise(batch.clean, batch.noise, batch.times)
        with computing_in(self.computing, noisy.device):
            found = self.model.unet(
                noisy, batch.times, encoder_hidden_states=self.embedded()[batch.shows]
            ).sample
        wanted = _TARGETS[self.foretold](self.scheduler, batch)
        found = found.float()[:, : wanted.shape[1]]  # some nets foretell a spread, too
        errors = F.mse_loss(found, wanted, reduction="none").mean(dim=(1, 2, 3))
        return errors * self._weights(batch.times)

    def embedded(self) -> Tensor:
        """Return the embeddings of all prompts (P, T, D)."""
        if self.model.text_encoder is None:
            return self.texts
        found: Tensor = self.model.text_encoder(self.texts, attention_mask=self.mask)[0]
        return found

    def _weights(self, times: Tensor) -> Tensor:
        """Return Min-SNR's weights (B,): little noise counts no more than gamma says."""
        if not self.min_snr:
            return torch.ones(len(times), device=times.device)
        kept: Tensor = self.scheduler.alphas_cumprod.to(times.device)[times].float()
        ratio = kept / (1 - kept)
        most = ratio.clamp(max=self.min_snr)
        if self.foretold == "sample":
            return most
        if self.foretold == "v_prediction":
            return most / (ratio + 1)
        return torch.where(ratio > 0, most / ratio.clamp(min=1e-12), 1.0)


def _noise(scheduler: Any, batch: Batch) -> Tensor:  # noqa: ANN401
    return batch.noise


def _clean(scheduler: Any, batch: Batch) -> Tensor:  # noqa: ANN401
    return batch.clean


def _velocity(scheduler: Any, batch: Batch) -> Tensor:  # noqa: ANN401
    found: Tensor = scheduler.get_velocity(batch.clean, batch.noise, batch.times)
    return found


_TARGETS = {"epsilon": _noise, "v_prediction": _velocity, "sample": _clean}
"""What a net foretells, by the name that the scheduler gives it."""
