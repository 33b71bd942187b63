"""What a run learns: from which batches, and by which loss. The default: next tokens of answers."""

from __future__ import annotations

from collections.abc import Generator
from typing import TYPE_CHECKING, Protocol

import torch
from torch import nn

from ..recipes import StepLog
from .config import TrainConfig
from .intake import Intake, taken_in
from .learner import Learner
from .noise import add_noise

if TYPE_CHECKING:
    from ..runtime.engines.local import LocalModel


class Task(Protocol):
    """One way to learn; made anew for each run, so it may remember what it was given."""

    drawn: tuple[str, ...]
    """Figures that the picture of the run shows, ``loss`` and those of :class:`.learner.Loss`."""
    unit: str
    """What the loss is counted in, on the picture."""
    per_token: bool
    """The loss is a mean over tokens: an evaluation tells its exponential, the perplexity."""

    def taken_in(self, config: TrainConfig, world: int) -> Generator[StepLog, None, Intake]:
        """Read what is learnt from; called before the model is loaded.

        The batches of the intake's feed may be made only when they are asked for, by the model
        itself: :meth:`learner` comes before the first of them.
        """
        ...

    def learner(
        self, config: TrainConfig, local: LocalModel, computing: torch.dtype | None
    ) -> nn.Module:
        """Return what gives the :class:`.learner.Loss` of a batch; its ``model`` is the model.

        :param local: dressed: what of it requires gradients is trained.
        :param computing: see :class:`.learner.Learner`.
        """
        ...


class NextTokens:
    """Learn the next token of answers: fine-tuning."""

    drawn: tuple[str, ...] = ("loss", "eval_loss")
    unit = "loss per token (nats)"
    per_token = True

    def taken_in(self, config: TrainConfig, world: int) -> Generator[StepLog, None, Intake]:
        """Read and tokenise conversations."""
        return (yield from taken_in(config, world))

    def learner(
        self, config: TrainConfig, local: LocalModel, computing: torch.dtype | None
    ) -> Learner:
        """Return the model's loss of next tokens."""
        learner = Learner(local.model, computing=computing)
        if config.neftune:
            add_noise(learner, config.neftune)
        return learner
