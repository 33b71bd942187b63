"""The recipe ``dreambooth``: what ``glmkit finetune`` finds. Light: no torch."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import TYPE_CHECKING

from glmkit import StepLog

from .config import DreamboothConfig

if TYPE_CHECKING:
    from glmkit import Glmkit


class Dreambooth:
    """A LoRA for the net of a picture model, and for its text encoder if that is asked for."""

    config_type = DreamboothConfig

    def prepared(self, config: DreamboothConfig, app: Glmkit) -> DreamboothConfig:
        """Return the config with the folder of its picture model.

        :raises UnknownNameError: if nobody knows the model.
        """
        from .base import located

        return replace(config, model=str(located(config.model, app)))

    def run(self, config: DreamboothConfig) -> Iterator[StepLog]:
        """Teach the model what photographs show."""
        from .run import train

        yield from train(config)


dreambooth = Dreambooth()
