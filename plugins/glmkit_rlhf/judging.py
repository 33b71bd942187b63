"""The reward model that a run names as the judge of its answers.

Which prompts it can read is known by its vocabulary and its longest row alone, so they are looked
through before anything is loaded; it is loaded by each process where that computes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from glmkit import Message

if TYPE_CHECKING:
    import torch

    from glmkit import Glmkit
    from glmkit.dataset.prompts import Prompt
    from glmkit.training.written import Written

    from .writing import Judge, Question

_ANSWER = Message("assistant", "")
"""There is room for an answer, or there is none: it doesn't matter what it says."""


@dataclass(frozen=True)
class Judging:
    """A reward model by its folder.

    :param app: finds models by name; None: one with the user's settings.
    :raises CheckpointError: if it is none, or its head is damaged.
    """

    folder: Path
    app: Glmkit | None = None

    def __post_init__(self) -> None:
        from .heads import load_head

        load_head(self.folder)

    def unreadable(self, prompts: Sequence[Prompt]) -> list[str]:
        """Say of each prompt why no answer to it can be scored; empty: it can."""
        from .scoring import alone, reader_of

        samples = [alone((*each.messages, _ANSWER)) for each in prompts]
        found = reader_of(self.folder, self.app).encode(samples)
        return ["" if each.rows else each.reason for each in found]

    def __call__(self, device: torch.device) -> Judge:
        """Load it onto a device; return what asks it."""
        from .scoring import RewardModel

        model = RewardModel.load(self.folder, self.app, device=str(device))

        def judge(pairs: Sequence[tuple[Question, Written]]) -> list[float | str]:
            return model.score_readable(
                [
                    (*question.prompt.messages, Message("assistant", written.text))
                    for question, written in pairs
                ]
            )

        return judge
