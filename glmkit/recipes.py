"""Recipes: ways to train a model, ours and those of plugins. Light floor: no torch."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol, TypeVar, runtime_checkable


@dataclass(frozen=True)
class StepLog:
    """One line of the log of a training run. Recipes are generators of these."""

    step: int
    """Steps of the optimizer that are done; 0 before the first."""
    total: int
    """Steps of the whole run."""
    epoch: float = 0.0
    loss: float | None = None
    """Mean loss per learnt token since the last line, in nats; None in a line without steps."""
    learning_rate: float | None = None
    grad_norm: float | None = None
    """Before gradients are scaled down."""
    tokens: int = 0
    """Tokens read since the run began, prompts included, by all processes."""
    tokens_per_s: float | None = None
    seconds_left: float | None = None
    metrics: Mapping[str, float] = field(default_factory=dict)
    """What an evaluation or the recipe measured, by name: ``eval_loss``, ``reward``."""
    note: str = ""
    """What else happened, for a person: ``"saved checkpoint-40"``."""


@dataclass(frozen=True)
class Alias:
    """A name by which people know a setting from another tool.

    A recipe has its own in ``aliases``, a ``ClassVar`` of its config.
    """

    name: str
    settings: tuple[str, ...] = ()
    """What it sets, the first of these that a recipe has; none: it is left out, with a warning."""
    read: Callable[[Any], Any] = lambda value: value
    """Returns the value as the setting is written."""
    switch: bool = False
    """On the command line it needs no value."""


ConfigT_contra = TypeVar("ConfigT_contra", contravariant=True)


@runtime_checkable
class Recipe(Protocol[ConfigT_contra]):
    """A way to train: one frozen config dataclass, and one generator."""

    config_type: type[Any]
    """A frozen dataclass; the docstrings of its attributes are the help of its flags. Where it is
    no :class:`~glmkit.training.config.TrainConfig`, ``glmkit finetune`` finds no model and no cache
    for it; the recipe's own ``prepared(config, app)`` may, which returns the config to run."""

    def run(self, config: ConfigT_contra) -> Iterator[StepLog]:
        """Train to the end; closing the iterator stops at once, and keeps the checkpoints."""
        ...


@dataclass(frozen=True)
class RecipeSpec:
    """A recipe by name, before it is imported."""

    name: str
    help: str
    """One line, for ``glmkit finetune --list``."""
    target: str
    """``"module:attribute"`` of a :class:`Recipe`, imported when it is needed."""
