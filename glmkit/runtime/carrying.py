"""How the blocks of a model run that is spread over devices, memory and disk.

Most blocks stay where they compute. One that is *carried* has its weights elsewhere: they are
brought in for its turn and dropped behind it, so that a device needs room for one such block only.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext

import torch
from torch import Tensor, nn

from .beside import LoraLinear
from .quantize import Int4Weight, Int8Weight

Leaves = Mapping[str, nn.Module]
"""Modules with tensors of their own, by their names inside a block."""


class Staying:
    """A block whose weights are where it computes; a :class:`~glmkit.models.causal.Turn`."""

    carried = False

    def __init__(self, device: torch.device) -> None:
        self.device = device

    def brought(self) -> AbstractContextManager[None]:
        """Do nothing."""
        return nullcontext()


class Carried:
    """A block whose weights are elsewhere; a :class:`~glmkit.models.causal.Turn`.

    :param block: with its leaves as they are between its turns.
    :param fetch: gives the leaves on ``device``; what it opened may go when its context ends.
    """

    carried = True

    def __init__(
        self,
        block: nn.Module,
        device: torch.device,
        fetch: Callable[[], AbstractContextManager[Leaves]],
    ) -> None:
        self.block, self.device, self._fetch = block, device, fetch
        self.turns = 0
        """How often its weights were brought in."""

    @contextmanager
    def brought(self) -> Iterator[None]:
        """Bring the weights in; whatever happens, drop them again."""
        with self._fetch() as leaves:
            before = {stem: _put(self.block, stem, leaf) for stem, leaf in leaves.items()}
            self.turns += 1
            try:
                yield
            finally:
                for stem, leaf in before.items():
                    _put(self.block, stem, leaf)


def _put(block: nn.Module, stem: str, leaf: nn.Module) -> nn.Module:
    """Put a module in its place, below the adapters that are on it; return what was there."""
    there = block.get_submodule(stem)
    if isinstance(there, LoraLinear):
        before, there.base = there.base, leaf
        return before
    block.set_submodule(stem, leaf)
    return there


def from_memory(
    leaves: Leaves, device: torch.device
) -> Callable[[], AbstractContextManager[Leaves]]:
    """Return what copies leaves from the processor's memory to a device."""

    def fetch() -> AbstractContextManager[Leaves]:
        return nullcontext({stem: lent(leaf, device) for stem, leaf in leaves.items()})

    return fetch


def lent(leaf: nn.Module, device: torch.device) -> nn.Module:
    """Return a copy of a module on a device; the module itself stays as it is."""
    new = copy.copy(leaf)
    for name, value in vars(leaf).items():
        if isinstance(value, Tensor):
            new.__dict__[name] = value.to(device, copy=True)
        elif isinstance(value, (Int4Weight, Int8Weight)):
            new.__dict__[name] = value.to(device)
    new._parameters = {
        name: None
        if each is None
        else nn.Parameter(each.detach().to(device, copy=True), requires_grad=False)
        for name, each in leaf._parameters.items()
    }
    return new
