"""Answers with all that a policy learns from them, one row of several, without pads.

Letters: S answers, N tokens of the row, prompts and all, M tokens of the answers, H hidden size.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from glmkit.training.attention import placed

if TYPE_CHECKING:
    from glmkit.training.below import CausalModel


@dataclass(frozen=True)
class Experience:
    """One answer."""

    ids: Tensor
    """int64 (T,): the prompt, then the answer with the token that ends it."""
    size: int
    """Tokens of the answer, 1 or more."""
    advantages: Tensor
    """(size,)."""
    old: Tensor | None = None
    """(size,): log-probabilities under the policy that wrote it; None: that is the one asked."""
    reference: Tensor | None = None
    """(size,): those under the reference; None: nothing is compared with one."""
    values: Tensor | None = None
    """(size,): what the value head said of the places before its tokens (PPO)."""
    returns: Tensor | None = None
    """(size,): what it should have said (PPO)."""
    figures: Mapping[str, float] = field(default_factory=dict)
    """What the log shows means of, by name."""


@dataclass(frozen=True)
class AnswerBatch:
    """Several answers in one row; the attributes of their tokens are (M,)."""

    ids: Tensor
    """int64 (N,)."""
    lengths: tuple[int, ...]
    """Tokens of each answer and its prompt, S of them."""
    sizes: tuple[int, ...]
    """Tokens of each answer."""
    advantages: Tensor
    weights: Tensor
    """How much each token counts: their sum over a step, divided by its answers, is the loss."""
    old: Tensor | None
    reference: Tensor | None
    values: Tensor | None
    returns: Tensor | None
    figures: Mapping[str, float]
    """Sums over the answers."""

    @classmethod
    def of(cls, answers: Sequence[Experience], weights: Sequence[Tensor]) -> AnswerBatch:
        """Put answers one behind another.

        :param weights: of the tokens of each.
        """
        names = answers[0].figures
        return cls(
            torch.cat([each.ids for each in answers]),
            tuple(len(each.ids) for each in answers),
            tuple(each.size for each in answers),
            torch.cat([each.advantages for each in answers]),
            torch.cat(list(weights)),
            _joined(answers, "old"),
            _joined(answers, "reference"),
            _joined(answers, "values"),
            _joined(answers, "returns"),
            {name: sum(each.figures[name] for each in answers) for name in names},
        )

    def to(self, device: torch.device) -> AnswerBatch:
        """Return the same on another device."""
        moved: dict[str, Any] = {
            name: value.to(device)
            for name, value in vars(self).items()
            if isinstance(value, Tensor)
        }
        return replace(self, **moved)

    @property
    def tokens(self) -> int:
        """N."""
        return len(self.ids)


def _joined(answers: Sequence[Experience], name: str) -> Tensor | None:
    found = [getattr(each, name) for each in answers]
    return None if found[0] is None else torch.cat(found)


def before_answers(
    model: CausalModel, ids: Tensor, lengths: Sequence[int], sizes: Sequence[int]
) -> tuple[Tensor, Tensor]:
    """Return the hidden states (M, H) before each token of the answers, and these tokens (M,).

    :param ids: int64 (N,): rows of these lengths, which end with answers of these sizes.
    """
    positions, blocks = placed(model, ids, lengths)
    hidden = model.hidden(ids[None], positions, past=blocks)[0]
    ends = torch.tensor(list(lengths)).cumsum(0).tolist()
    places = torch.cat(
        [torch.arange(end - size, end) for end, size in zip(ends, sizes, strict=True)]
    ).to(ids.device)
    return hidden[(places - 1).to(hidden.device)], ids[places]
