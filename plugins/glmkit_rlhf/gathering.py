"""What the processes of a run know together, so that several learn what one would."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

import torch
from torch import Tensor, distributed

T = TypeVar("T")


def rank() -> int:
    """Return which process this is, from 0."""
    return distributed.get_rank() if _several() else 0


def gathered(own: T) -> list[T]:
    """Return what each process has, by rank; alone, one's own. All processes call it together."""
    if not _several():
        return [own]
    found = [own] * distributed.get_world_size()
    distributed.all_gather_object(found, own)
    return found


def over_all(formula: Callable[[Tensor], Tensor], own: Tensor) -> Tensor:
    """Return what a formula over the rows of all processes gives for one's own.

    :param formula: takes and returns as many rows.
    """
    parts = gathered(own)
    return torch.split(formula(torch.cat(parts)), [len(each) for each in parts])[rank()]


def _several() -> bool:
    return distributed.is_available() and distributed.is_initialized()
