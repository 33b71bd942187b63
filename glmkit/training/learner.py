"""A model as a function from a batch to its loss.

Letters: N tokens of a batch, V vocabulary.
"""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor, nn

from ..models.causal import CausalModel
from .attention import placed
from .batches import Batch
from .losses import next_token_loss


class Loss(NamedTuple):
    """What a batch cost."""

    total: Tensor
    """Sum of weighted losses, in nats; gradients are taken of it."""
    weight: Tensor
    """Sum of the weights that it is of."""


class Learner(nn.Module):
    """A causal model that is asked for its loss.

    :param model: may carry adapters; whatever of it requires gradients is trained.
    """

    def __init__(self, model: CausalModel) -> None:
        super().__init__()
        self.model = model

    def forward(self, batch: Batch) -> Loss:
        """Return the loss of next tokens, each times its weight."""
        hidden = self._hidden(batch)  # (N, hidden)
        # The hidden state before a token foretells it.
        wanted = batch.weights[1:].nonzero().squeeze(-1)
        weights = batch.weights[wanted + 1]
        some = hidden[wanted.to(hidden.device)]
        return Loss(
            next_token_loss(self.model, some, batch.ids[wanted + 1], weights), weights.sum()
        )

    def _hidden(self, batch: Batch) -> Tensor:
        """Return the hidden states (N, hidden), one example after another."""
        positions, blocks = placed(self.model, batch.ids, batch.lengths)
        return self.model.hidden(batch.ids[None], positions, past=blocks)[0]
