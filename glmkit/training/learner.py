"""A model as a function from a batch to its loss.

Letters: N tokens of a batch, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from types import MappingProxyType
from typing import NamedTuple

import torch
from torch import Tensor, nn

from ..evaluation.comparing import Measure
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
    figures: Mapping[str, Tensor] = MappingProxyType({})
    """What else is worth knowing, by name, as sums over the same weights: the log shows means over
    a whole step. All processes give the same names in a step."""
    parts: Mapping[str, Tensor] = MappingProxyType({})
    """The weights of those figures that are of a part of the batch only, by name. Where they come
    to 0, the log has no such figure."""

    def measures(self) -> dict[str, Measure]:
        """Return each figure with the weight that it is of."""
        return {
            name: Measure(float(each), float(self.parts.get(name, self.weight)))
            for name, each in self.figures.items()
        }


class Learner(nn.Module):
    """A causal model that is asked for its loss.

    :param model: may carry adapters; whatever of it requires gradients is trained.
    :param computing: what products are taken in, where weights that learn lie in single precision;
        see `precision.py`.
    """

    def __init__(self, model: CausalModel, *, computing: torch.dtype | None = None) -> None:
        super().__init__()
        self.model, self.computing = model, computing

    def forward(self, batch: Batch) -> Loss:
        """Return the loss of next tokens, each times its weight."""
        with computing_in(self.computing, batch.ids.device):
            return self._loss(batch)

    def _loss(self, batch: Batch) -> Loss:
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


@contextmanager
def computing_in(dtype: torch.dtype | None, device: torch.device) -> Iterator[None]:
    """Take products in half precision, whatever their factors lie in; None: as they are."""
    if dtype is None:
        yield
        return
    with torch.autocast(device.type, dtype=dtype):
        yield
