"""What one process holds of a training that several processes part among them."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from .demand import Demand, Parts

PARTED = ("weights", "gradients", "optimizer")


@dataclass(frozen=True)
class Parting:
    """How processes share what a training holds."""

    world: int
    """Processes."""
    parted: tuple[str, ...] = PARTED
    """What each of them has a part of only."""
    elsewhere: tuple[str, ...] = ()
    """What of that is kept in the processor's memory."""
    copies: bool = False
    """The optimizer has a copy of its own of what is trained, in single precision (DeepSpeed)."""

    def own(self, whole: Parts) -> Parts:
        """Return what a process has of its own on its device."""
        kept = {
            name: 0 if name in self.elsewhere else self._part(whole, name) for name in self.parted
        }
        return replace(whole, **kept)

    def kept(self, whole: Parts) -> int:
        """Return the bytes that a process keeps in the processor's memory."""
        return sum(self._part(whole, name) for name in self.elsewhere)

    def _part(self, whole: Parts, name: str) -> int:
        return -(-int(getattr(whole, name)) // self.world)


def parted(demand: Demand, parting: Parting) -> Demand:
    """Return what a process needs.

    Whole weights are borrowed: of the token table and the head for a pass, of blocks while they
    run and of the next one; the gradients of a block are whole until they have been sent.
    """
    borrowed = "weights" in parting.parted
    inside = demand.inside + (2 * demand.layer.weights if borrowed else 0)
    if "gradients" in parting.parted:
        inside += demand.layer.gradients
    ends = [parting.own(each) for each in (demand.embedding, demand.head)]
    shared = demand.shared
    if borrowed:
        wholes = (demand.embedding.weights, demand.head.weights)
        ends = [
            replace(own, weights=own.weights + whole)
            for own, whole in zip(ends, wholes, strict=True)
        ]
        shared += 0 if "weights" in parting.elsewhere else shared // parting.world
    return replace(
        demand,
        embedding=ends[0],
        layer=parting.own(demand.layer),
        head=ends[1],
        shared=shared,
        inside=inside,
    )
