"""What attention sees of the cache in one step: a run of new tokens, or one more for each row.

Shapes: as in `models/glm.py`; C is the capacity of a slot in tokens.
"""

from __future__ import annotations

import torch
from torch import Tensor

from .cache import KVCache


class Span:
    """A run of new tokens of neighbouring slots: prompts, or what a chat adds to one."""

    def __init__(
        self, cache: KVCache, slot: int, start: int, tokens: int, *, rows: int = 1
    ) -> None:
        self.cache, self.slots = cache, slice(slot, slot + rows)
        self.start, self.end = cache.ahead + start, cache.ahead + start + tokens

    def extend(self, layer: int, kv: Tensor) -> tuple[Tensor, Tensor]:
        """Store (rows, T, 2G, D) behind what the slots hold; return all of it."""
        held = self.cache.layers[layer][self.slots]
        held[:, :, self.start : self.end] = kv.transpose(1, 2)
        return _seen(held, self.end)


class Front:
    """One new token for each of the slots 0..B-1, each at the end of its own row."""

    def __init__(self, cache: KVCache, lengths: list[int]) -> None:
        self.cache, self.rows = cache, len(lengths)
        self.end = cache.ahead + max(lengths) + 1
        self.even = min(lengths) == max(lengths)
        device = cache.layers[0].device
        self.places = torch.tensor(lengths, device=device) + cache.ahead
        self.slots = torch.arange(self.rows, device=device)
        self._at = {device: (self.slots, self.places)}

    def mask(self) -> Tensor | None:
        """Return which keys each row has, bool (B, 1, 1, S); None where all rows are even."""
        if self.even:
            return None
        seen = torch.arange(self.end, device=self.places.device) <= self.places[:, None]
        return seen[:, None, None, :]

    def extend(self, layer: int, kv: Tensor) -> tuple[Tensor, Tensor]:
        """Store (B, 1, 2G, D), each row at its own place; return (B, G, S, D) twice."""
        held = self.cache.layers[layer]
        if self.rows < held.shape[0]:
            held = held[: self.rows]
        if self.even:
            held[:, :, self.end - 1] = kv[:, 0]
        else:
            slots, places = self._index(held.device)
            held[slots, :, places] = kv[:, 0]
        return _seen(held, self.end)

    def _index(self, device: torch.device) -> tuple[Tensor, Tensor]:
        """Return the slots and their places on a device, moved once where layers are spread."""
        if device not in self._at:
            self._at[device] = self.slots.to(device), self.places.to(device)
        return self._at[device]


def _seen(held: Tensor, end: int) -> tuple[Tensor, Tensor]:
    """Return the keys and the values of the first ``end`` tokens."""
    keys, values = held.narrow(2, 0, end).chunk(2, dim=1)
    return keys, values
