"""What attention sees of the cache in one step: a run of new tokens, or one more for each row.

Every token sees what its own row has, up to itself. Where our extension takes the numbers it does
all of attention, and what a row gets is the same to the last bit whatever runs beside it, and
however its tokens came into the cache: all at once, in pieces, or one by one.

Shapes: as in `models/glm.py`; C is the capacity of a slot in tokens.
"""

from __future__ import annotations

from typing import cast

import torch
from torch import Tensor, nn

from ..models.attention import Past
from ..models.causal import Stack
from .cache import KVCache
from .kernels import has_own_kernel
from .whole import runs

try:
    from . import _kernels
except ImportError:  # built without a C compiler
    _kernels = None  # type: ignore[assignment]


class _New(Past):
    """New tokens of the slots ``slot`` to ``slot + B``, as many for each.

    :param starts: how many places of each slot are taken already, the prefix among them.
    """

    def __init__(self, cache: KVCache, slot: int, starts: list[int], tokens: int) -> None:
        self.cache, self.slot, self.rows, self.tokens = cache, slot, len(starts), tokens
        self.starts = torch.tensor(starts)
        self.end = max(starts) + tokens
        self.even = min(starts) == max(starts)
        self._indices: dict[torch.device, tuple[Tensor, Tensor]] = {}
        self._masks: dict[torch.device, Tensor] = {}

    def attend(self, layer: int, qkv: Tensor, turns: Tensor | None) -> Tensor | None:
        """Do all of attention in one call; None where our extension does not take the numbers."""
        held = self.cache.layers[layer]
        if not _suits(held, qkv):
            return None
        qkv = qkv.contiguous()
        rows, tokens, heads, size = qkv.shape
        turns = None if turns is None else _turns(turns, rows, tokens)
        _, both, room, _ = held.shape
        out = qkv.new_empty((rows, tokens, (heads - both) * size))
        _kernels.attend(
            qkv.data_ptr(),
            0 if turns is None else turns.data_ptr(),
            held.data_ptr() + self.slot * both * room * size * 4,
            self.starts.data_ptr(),
            out.data_ptr(),
            rows,
            tokens,
            heads - both,
            both // 2,
            size,
            0 if turns is None else 2 * turns.shape[-1],
            room,
            self.cache.threads,
        )
        return out

    def run(self, stack: nn.Module, x: Tensor, turns: Tensor) -> Tensor | None:
        """Send tokens through all blocks in one call, as far as our extension takes them."""
        plan = runs(cast(Stack, stack), x)
        layers = self.cache.layers
        if plan is None or not self.cache.even or any(each.dtype != x.dtype for each in layers):
            return None
        x = x.contiguous()
        rows, tokens, hidden = x.shape
        turns = _turns(turns, rows, tokens)
        _, both, room, size = layers[0].shape
        start = self.slot * both * room * size * 4
        held = torch.tensor([each.data_ptr() + start for each in layers])
        model = (x.data_ptr(), plan.steps.data_ptr(), held.data_ptr())
        places = (turns.data_ptr(), self.starts.data_ptr())
        counts = (len(layers), hidden, plan.inner, rows, tokens, plan.heads)
        sizes = (both // 2, size, 2 * turns.shape[-1], room)
        _kernels.run(*model, *places, *counts, *sizes, plan.eps, self.cache.threads)
        return x

    def sees(self, like: Tensor, causal: bool) -> tuple[Tensor | None, bool]:
        """Return who sees whom; it is worked out once for all layers of a device."""
        if self.even and (self.tokens == 1 or self.end == self.tokens):
            return None, self.tokens > 1
        if like.device not in self._masks:
            ends = self.starts[:, None] + torch.arange(self.tokens)
            mask = torch.arange(self.end) <= ends[..., None]  # (B, T, S)
            self._masks[like.device] = mask[:, None].to(like.device)
        return self._masks[like.device], False


class Span(_New):
    """A run of new tokens of neighbouring slots: prompts, or what a chat adds to one."""

    def __init__(
        self, cache: KVCache, slot: int, start: int, tokens: int, *, rows: int = 1
    ) -> None:
        super().__init__(cache, slot, [cache.ahead + start] * rows, tokens)

    def extend(self, layer: int, kv: Tensor) -> tuple[Tensor, Tensor]:
        """Store (B, T, 2G, D) behind what the slots hold; return all of it."""
        held = self.cache.layers[layer].narrow(0, self.slot, self.rows)
        held[:, :, self.end - self.tokens : self.end] = kv.transpose(1, 2)
        return _seen(held, self.end)


class Front(_New):
    """One new token for each of the slots 0..B-1, each at the end of its own row."""

    def __init__(self, cache: KVCache, lengths: list[int]) -> None:
        super().__init__(cache, 0, [cache.ahead + each for each in lengths], 1)

    @property
    def places(self) -> Tensor:
        """Where each row's token goes in its slot, (B)."""
        return self._places(self.cache.layers[0].device)[1]

    def extend(self, layer: int, kv: Tensor) -> tuple[Tensor, Tensor]:
        """Store (B, 1, 2G, D), each row at its own place; return (B, G, S, D) twice."""
        held = self.cache.layers[layer].narrow(0, 0, self.rows)
        if self.even:
            held[:, :, self.end - 1] = kv[:, 0]
        else:
            slots, places = self._places(held.device)
            held[slots, :, places] = kv[:, 0]
        return _seen(held, self.end)

    def _places(self, device: torch.device) -> tuple[Tensor, Tensor]:
        """Return slots and places, each (B); on a device they are made once for all layers."""
        if device not in self._indices:
            slots = torch.arange(self.rows, device=device)
            self._indices[device] = slots, self.starts.to(device)
        return self._indices[device]


def _suits(held: Tensor, qkv: Tensor) -> bool:
    """Tell whether our extension takes these numbers."""
    if held.dtype != torch.float32 or held.device.type != "cpu" or not has_own_kernel():
        return False
    return qkv.dtype == torch.float32 and not (qkv.requires_grad and torch.is_grad_enabled())


def _turns(turns: Tensor, rows: int, tokens: int) -> Tensor:
    """Return rotations, complex64 (B, T, 1, rotary_dim / 2), one for each token, gapless."""
    return turns.to(torch.complex64).expand(rows, tokens, 1, -1).contiguous()


def _seen(held: Tensor, end: int) -> tuple[Tensor, Tensor]:
    """Return the keys and the values of the first ``end`` tokens."""
    keys, values = held.narrow(2, 0, end).chunk(2, dim=1)
    return keys, values
