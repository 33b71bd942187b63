"""The slot cache: keys and values of every running row, allocated once.

Row s of the cache is a slot; the slots in use are always 0..B-1, so that a step over B rows sees
plain views. A row that leaves has the last slot moved into its place.

Shapes: as in `models/glm.py`; C is the capacity of a slot in tokens.
"""

from __future__ import annotations

from torch import Tensor

from ..models.causal import ModelConfig

_STEP = 128
"""Slots grow by multiples of this many tokens."""


class KVCache:
    """Keys and values of up to ``slots`` rows: (slots, 2G, C, D) for each layer, keys first.

    :param like: an empty tensor of the dtype and on the device of the cache.
    :param prefix: keys, then values, (L, P, 2G, D), that each slot begins with.
    """

    def __init__(
        self, config: ModelConfig, slots: int, *, like: Tensor, prefix: Tensor | None = None
    ) -> None:
        self.config = config
        self.slots = slots
        self.capacity = 0
        self.used = 0
        self._like = like
        self._prefix = None if prefix is None else prefix.to(like).transpose(1, 2)
        self.ahead = 0 if prefix is None else prefix.shape[1]
        """P: entries of a slot before its first token."""
        self.layers: list[Tensor] = []

    def reserve(self, tokens: int) -> None:
        """Make sure that a slot holds ``tokens``; what is cached stays."""
        tokens += self.ahead
        if tokens <= self.capacity:
            return
        most = max(tokens, self.config.context_length + self.ahead)
        self.capacity = min(-(-tokens // _STEP) * _STEP, most)
        shape = (self.slots, 2 * self.config.kv_heads, self.capacity, self.config.head_dim)
        # Zeros, not garbage: masked places are multiplied by 0, and 0 * NaN would be NaN.
        new = [self._like.new_zeros(shape) for _ in range(self.config.layers)]
        for before, after in zip(self.layers, new, strict=False):
            after[: self.used, :, : before.shape[2]] = before[: self.used]
        self.layers = new

    def open(self) -> int:
        """Take the next free slot, and put the prefix into it."""
        slot = self.used
        self.used += 1
        if self._prefix is not None:
            for layer, kv in zip(self.layers, self._prefix, strict=True):
                layer[slot, :, : self.ahead] = kv
        return slot

    def free(self, slot: int, length: int) -> None:
        """Give a slot back; the last slot, holding ``length`` tokens, moves into its place."""
        last = self.used - 1
        if slot != last:
            end = self.ahead + length
            for each in self.layers:
                each[slot, :, :end] = each[last, :, :end]
        self.used = last
