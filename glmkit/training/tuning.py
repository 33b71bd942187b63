"""What a recipe says of a model: which part of it is trained, and how that is kept."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol

from torch import Tensor

from ..models.causal import CausalModel
from .config import TrainConfig
from .optimizers import Group


class Kept(Protocol):
    """How what was trained is kept in files."""

    lossless: bool
    """:meth:`load` returns what :meth:`save` was given, to the bit."""

    def save(self, state: dict[str, Tensor], folder: Path) -> None:
        """Write what was trained, so that ``--adapter`` (or ``--model``) takes the folder.

        :param state: the trained parameters by their names in the dressed model, on the processor,
            whole, in the precision that they are trained in.
        """
        ...

    def load(self, folder: Path) -> dict[str, Tensor]:
        """Return what :meth:`save` wrote; of another layout too, where there are several.

        :raises CheckpointError: if it is damaged, or for another base.
        """
        ...


class Tuning(Kept, Protocol):
    """One way of training a language model."""

    kind: str
    """What the memory forecast calls it: ``lora``, ``full``, ``ptuning``."""
    forecast: Mapping[str, Any]
    """What else :class:`~glmkit.runtime.demand.Job` is told: ``rank``, ``targets``, ``prefix``."""

    def dress(self, model: CausalModel) -> None:
        """Freeze what is not trained, and add what is new, in place."""
        ...

    def groups(self, model: CausalModel, config: TrainConfig) -> list[Group]:
        """Return what is trained as groups, each with a learning rate of its own if it has one."""
        ...


def together(model: CausalModel) -> list[Group]:
    """Return all that is trained as one group."""
    return [{"params": [each for each in model.parameters() if each.requires_grad]}]
