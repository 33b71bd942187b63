"""The slot cache: keys and values of every running row.

Row s of the cache is a slot; the slots in use are always 0..B-1, so that a step over B rows sees
plain views. A row that leaves has the last slot moved into its place. Slots and their capacity
grow with what runs, within a bound.

Shapes: as in `models/glm.py`; C is the capacity of a slot in tokens.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from ..models.causal import ModelConfig

_STEP = 128
"""Slots grow by multiples of this many tokens, and by a quarter at least."""


class CacheFullError(MemoryError):
    """The rows need more than the cache may take."""


class KVCache:
    """Keys and values of up to ``slots`` rows: (slots, 2G, C, D) for each layer, keys first.

    :param likes: for each layer, an empty tensor of the dtype and on the device of its cache.
    :param prefix: keys, then values, (L, P, 2G, D), that each slot begins with.
    :param limit: bytes that it may take, all layers together; None: no bound.
    """

    def __init__(
        self,
        config: ModelConfig,
        slots: int,
        *,
        likes: Sequence[Tensor],
        prefix: Tensor | None = None,
        limit: int | None = None,
    ) -> None:
        self.config = config
        self.slots = slots
        """The most rows side by side."""
        self.limit = limit
        self.rows = 0
        """Slots that there is memory for now."""
        self.capacity = 0
        self.used = 0
        self._prefix = None if prefix is None else prefix.transpose(1, 2)
        self.ahead = 0 if prefix is None else prefix.shape[1]
        """P: entries of a slot before its first token."""
        self.even = True
        """Whether all layers are of one shape. Where memory ran out while they grew, some are
        larger than the others."""
        self.layers: list[Tensor] = [each.new_zeros(self._shape(0, 0)) for each in likes]
        self.threads = torch.get_num_threads()
        """What attention may use."""

    def size_of(self, tokens: int) -> int:
        """Return the bytes of a slot for so many tokens."""
        numbers = 2 * self.config.kv_heads * (tokens + self.ahead) * self.config.head_dim
        return sum(numbers * each.element_size() for each in self.layers)

    def room(self, tokens: int) -> int:
        """Return how many slots there may be, if each holds so many tokens."""
        if self.limit is None:
            return self.slots
        return min(self.slots, self.limit // self.size_of(tokens))

    def reserve(self, rows: int, tokens: int) -> None:
        """Make sure of so many slots of so many tokens; what is cached there stays.

        :raises CacheFullError: if that is more than the cache may take.
        """
        if rows > self.room(tokens):
            raise CacheFullError(f"{rows} rows of {tokens} tokens")
        tokens += self.ahead
        if rows <= self.rows and tokens <= self.capacity:
            return
        slots, capacity = self._grown(rows, tokens)
        self.even = False
        for layer, before in enumerate(self.layers):
            # Zeros, not garbage: masked places are multiplied by 0, and 0 * NaN would be NaN.
            after = before.new_zeros(self._shape(slots, capacity))
            kept = min(before.shape[2], capacity)
            after[: self.used, :, :kept] = before[: self.used, :, :kept]
            self.layers[layer] = after
        self.rows, self.capacity, self.even = slots, capacity, True

    def _grown(self, rows: int, tokens: int) -> tuple[int, int]:
        """Return slots and capacity, generous where the bound allows it, else just enough."""
        slots = self.rows if rows <= self.rows else min(self.slots, max(rows, 2 * self.rows))
        capacity = self.capacity
        if tokens > capacity:
            # On a card recorded steps are forgotten each time: it moves less often.
            more = 2 * capacity if self.layers[0].is_cuda else capacity * 5 // 4
            capacity = -(-max(tokens, more) // _STEP) * _STEP
            capacity = max(tokens, min(capacity, self.config.context_length + self.ahead))
        if slots > self.room(capacity - self.ahead):
            return rows, tokens
        return slots, capacity

    def _shape(self, slots: int, capacity: int) -> tuple[int, int, int, int]:
        return slots, 2 * self.config.kv_heads, capacity, self.config.head_dim

    def open(self) -> int:
        """Take the next free slot, and put the prefix into it."""
        slot = self.used
        self.used += 1
        if self._prefix is not None:
            for layer, kv in zip(self.layers, self._prefix, strict=True):
                layer[slot, :, : self.ahead] = kv
        return slot

    def move(self, source: int, target: int, length: int) -> None:
        """Copy a slot that holds so many tokens to another place."""
        end = self.ahead + length
        for each in self.layers:
            each[target, :, :end] = each[source, :, :end]

    def wipe(self, slot: int) -> None:
        """Make zeros of what is no number, which a mask would not keep from the slot's next row."""
        for each in self.layers:
            each[slot].nan_to_num_(0.0, 0.0, 0.0)

    def close(self) -> None:
        """Give the last slot back."""
        self.used -= 1
