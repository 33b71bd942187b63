"""Conversations that end with answers, one behind another in a row: none sees another, no pads.

Letters: S conversations, N tokens of the row.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np
import torch
from torch import Tensor

from glmkit.training.attention import placed
from glmkit.training.losses import token_log_probs

if TYPE_CHECKING:
    from glmkit.training.below import CausalModel
    from glmkit.training.examples import Example

RowT = TypeVar("RowT", bound="Row")


@dataclass(frozen=True)
class Row:
    """Conversations in one row."""

    ids: Tensor
    """int64 (N,)."""
    learnt: Tensor
    """bool (N,): tokens of answers."""
    lengths: tuple[int, ...]
    """Tokens of each conversation, S of them."""

    def to(self: RowT, device: torch.device) -> RowT:
        """Return the same on another device."""
        moved: dict[str, Any] = {
            name: value.to(device)
            for name, value in vars(self).items()
            if isinstance(value, Tensor)
        }
        return replace(self, **moved)

    def some(self, start: int, end: int) -> Row:
        """Return the conversations from one up to another, by themselves."""
        first, last = sum(self.lengths[:start]), sum(self.lengths[:end])
        return Row(self.ids[first:last], self.learnt[first:last], self.lengths[start:end])

    @property
    def sizes(self) -> tuple[int, ...]:
        """Tokens of each answer, S of them."""
        parts = torch.split(self.learnt, list(self.lengths))
        return tuple(int(each.sum()) for each in parts)


def joined(examples: Sequence[Example]) -> Row:
    """Put conversations one behind another."""
    ids = np.concatenate([each.ids for each in examples]).astype(np.int64)
    learnt = np.concatenate([each.weights > 0 for each in examples])
    return Row(torch.from_numpy(ids), torch.from_numpy(learnt), tuple(map(len, examples)))


def answer_log_probs(model: CausalModel, row: Row) -> Tensor:
    """Return the log-probabilities of the answers, (S,): the sums over their tokens, in nats."""
    positions, blocks = placed(model, row.ids, row.lengths)
    hidden = model.hidden(row.ids[None], positions, past=blocks)[0]
    wanted = row.learnt.nonzero().squeeze(-1)
    found = token_log_probs(model, hidden[(wanted - 1).to(hidden.device)], row.ids[wanted])
    return torch.stack([each.sum() for each in torch.split(found, list(row.sizes))])
