"""The model as it was when the run began: what a policy is kept near to."""

from __future__ import annotations

from collections.abc import Hashable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from glmkit.training.evaluating import judged
from glmkit.training.undressed import undressed

from .rows import Row, answer_log_probs

if TYPE_CHECKING:
    from glmkit.training.below import CausalModel
    from glmkit.training.tuning import Tuning


class Initial:
    """Lets a model compute as it did before it learnt anything.

    A new LoRA changes nothing at first, so the model without it is the one that it was. Of weights
    that learn themselves, and of an adapter that training goes on with, a copy is kept.

    :param model: dressed, before the first step, and before a checkpoint is restored.
    :param adapter: what its LoRA begins with, by name in the model; None: a new one.
    """

    def __init__(self, model: nn.Module, kind: str, adapter: dict[str, Tensor] | None) -> None:
        self.model = model
        self._kept: dict[str, Tensor] | None = adapter
        if kind != "lora":
            self._kept = {
                name: each.detach().clone()
                for name, each in model.named_parameters()
                if each.requires_grad
            }

    @classmethod
    def of(cls, model: nn.Module, tuning: Tuning, init_adapter: str | None) -> Initial:
        """Return how a training begins.

        :param init_adapter: the folder of the adapter that it goes on with.
        :raises CheckpointError: if that is damaged, or of another base.
        """
        from pathlib import Path

        adapter = None
        if init_adapter is not None:
            adapter = tuning.load(Path(init_adapter).expanduser())
        return cls(model, tuning.kind, adapter)

    @contextmanager
    def __call__(self) -> Iterator[None]:
        """Be the first model inside a ``with`` block, without gradients."""
        if self._kept is None:
            with torch.no_grad(), undressed(self.model):
                yield
            return
        with torch.no_grad(), _swapped(self.model, self._kept):
            yield


@contextmanager
def _swapped(model: nn.Module, values: dict[str, Tensor]) -> Iterator[None]:
    """Give parameters other values for a while; the right ones are not copied."""
    own = {name: each for name, each in model.named_parameters() if name in values}
    before = {name: each.data for name, each in own.items()}
    try:
        for name, each in own.items():
            each.data = values[name].to(each.data)
        yield
    finally:
        for name, each in own.items():
            each.data = before[name]


class AtFirst:
    """What the first model says of answers, which never changes: asked once, and remembered.

    Each row is asked for alone, so that a resumed run, which asks again, gets the same numbers.
    """

    def __init__(self, model: CausalModel, initial: Initial) -> None:
        self.model, self.initial = model, initial
        self._known: dict[Hashable, list[float]] = {}

    def __call__(self, rows: Sequence[Row], keys: Sequence[Hashable | None]) -> Tensor:
        """Return the log-probabilities of answers, (len(rows), S), as exact as may be.

        :param rows: of as many conversations each, S.
        :param keys: equal rows, equal keys; None: not to be remembered.
        """
        known = [None if key is None else self._known.get(key) for key in keys]
        if None in known:
            with self.initial(), judged(self.model):
                known = [self._asked(*each) for each in zip(rows, keys, known, strict=True)]
        found = torch.tensor(known, dtype=torch.float64)
        like = self.model.like
        return found.to(like.device, torch.promote_types(like.dtype, torch.float32))

    def _asked(self, row: Row, key: Hashable | None, known: list[float] | None) -> list[float]:
        if known is not None:
            return known
        found: list[float] = answer_log_probs(self.model, row).tolist()
        if key is not None:
            self._known[key] = found
        return found
