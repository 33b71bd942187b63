"""What the runtime asks of an architecture, so that it need not know any of them.

Shapes: B rows, T new tokens, S tokens seen so far (cached and new), G key/value heads, D head
size, V vocabulary. Positions are (B, T), or (B, 2, T) where an architecture counts along two axes.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from typing import Any, ClassVar, NamedTuple, Protocol, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from .attention import Past
from .prefix import Prefixed, PrefixEncoder, beside_prefix

Position = int | tuple[int, ...]
Placer = Callable[[int], Position]
"""Takes the index of a token in its row, behind the prompt; returns its position."""


class ModelConfig(Protocol):
    """The part of a model's shape that the runtime plans by."""

    @property
    def vocab_size(self) -> int: ...  # noqa: D102
    @property
    def hidden_size(self) -> int: ...  # noqa: D102
    @property
    def layers(self) -> int: ...  # noqa: D102
    @property
    def heads(self) -> int: ...  # noqa: D102
    @property
    def kv_heads(self) -> int: ...  # noqa: D102
    @property
    def head_dim(self) -> int: ...  # noqa: D102
    @property
    def context_length(self) -> int: ...  # noqa: D102
    @property
    def tied_head(self) -> bool: ...  # noqa: D102
    @property
    def parameters(self) -> int: ...  # noqa: D102


class Start(NamedTuple):
    """How whole rows begin."""

    positions: Tensor
    mask: Tensor | None
    """True where a query may see a key, (B, 1, T, T); None: each token sees those before it."""


class CausalModel(nn.Module):
    """A language model of plain torch modules under their original names."""

    EMBEDDING: ClassVar[str]
    """Where the token table is: the stem of its parameters."""
    HEAD: ClassVar[str]
    """Where the head is."""
    REUSABLE: ClassVar[bool] = True
    """A token's keys and values depend on what stands before it only, so that rows that begin
    alike may share them."""

    config: ModelConfig
    transformer: nn.Module

    @property
    def norm(self) -> nn.Module:
        """The last norm, in front of the head."""
        raise NotImplementedError

    @property
    def prefix(self) -> PrefixEncoder | None:
        """The P-Tuning prefix, where the model has one."""
        return cast("PrefixEncoder | None", self.transformer.prefix_encoder)

    def start(self, ids: Tensor, real: Tensor | None = None) -> Start:
        """Place the tokens of whole rows.

        :param ids: (B, T).
        :param real: (B, T), False on pads; None: there are none.
        """
        raise NotImplementedError

    def placer(self, prompt: Sequence[int]) -> Placer:
        """Return what places the tokens that follow a prompt."""
        raise NotImplementedError

    def hidden(
        self,
        ids: Tensor,
        positions: Tensor,
        *,
        mask: Tensor | None = None,
        causal: bool = False,
        past: Past | None = None,
    ) -> Tensor:
        """Return the hidden states (B, T, hidden) of new tokens, not normed yet.

        :param ids: (B, T).
        :param positions: each token's place in its own row; see :meth:`start`.
        :param mask: True where a query may see a key, (B, 1, T, S); None: as ``past`` knows.
        :param causal: each token sees itself and those before it; only without ``mask``. A cache
            of ours (`runtime/past.py`) knows that by itself.
        """
        raise NotImplementedError

    def scores(self, hidden: Tensor) -> Tensor:
        """Return next-token scores, float32 (..., V), of hidden states (..., hidden)."""
        raise NotImplementedError

    @property
    def like(self) -> Tensor:
        """An empty tensor of the dtype that the model computes with, where its scores arise."""
        return cast(Tensor, self.norm.weight).detach()[:0]

    @property
    def stack(self) -> Stack:
        """What holds the blocks."""
        raise NotImplementedError

    @property
    def likes(self) -> list[Tensor]:
        """For each block, an empty tensor of the dtype and on the device that it computes with."""
        like, turns = self.like, self.stack.turns
        if not turns:
            return [like] * self.config.layers
        return [like.new_empty(0, device=each.device) for each in turns]

    def where(self, stem: str) -> torch.device:
        """Return the device that the module called ``stem`` computes on."""
        number = re.search(r"\.layers\.(\d+)\.", stem)
        turns = self.stack.turns
        if number is None or not turns:
            return self.like.device
        return turns[int(number[1])].device

    def forward(
        self, ids: Tensor, positions: Tensor | None = None, mask: Tensor | None = None
    ) -> Tensor:
        """Return the scores (B, T, V) of whole rows, behind the model's prefix if it has one.

        :param positions: None: as :meth:`start` places them.
        :param mask: (B, 1, T, T); None with given positions: each sees those before it.
        """
        if positions is None:
            positions, built = self.start(ids)
            mask = built if mask is None else mask
        past = None
        if self.prefix is not None:
            past = Prefixed(self.prefix())
            mask = beside_prefix(mask, self.prefix.config.length, ids)
        hidden = self.hidden(ids, positions, mask=mask, causal=mask is None, past=past)
        return self.scores(hidden)


class Movable(Protocol):
    """What blocks are given beside the stream."""

    def to(self, *args: Any, **kwargs: Any) -> Any:  # noqa: ANN401
        """Return the same on another device."""
        ...


class Turn(Protocol):
    """How one block of a model runs that is spread over devices; see `runtime/carrying.py`."""

    device: torch.device
    """Where it computes."""
    carried: bool
    """Its weights are elsewhere between its turns."""

    def brought(self) -> AbstractContextManager[None]:
        """See that its weights are there while it runs."""
        ...


class Stack(nn.Module):
    """What holds the blocks, in ``layers``, and runs them one after another."""

    gradient_checkpointing = False
    """In training, a block's inner values are worked out again when gradients need them."""
    layers: nn.ModuleList
    turns: Sequence[Turn] = ()
    """One for each block, where they are on several devices or their weights elsewhere."""

    def through(self, x: Tensor, seen: Movable) -> Tensor:
        """Return ``x`` (B, T, hidden) after all blocks, which are called with it and ``seen``."""
        if self.turns:
            return self._spread(x, seen)
        for layer in self.layers:
            x = self._run(layer, x, seen)
        return x

    def _spread(self, x: Tensor, seen: Movable) -> Tensor:
        """Do the same over several devices: what blocks are given moves where the next one is."""
        at: dict[torch.device, Any] = {}
        for layer, turn in zip(self.layers, self.turns, strict=True):
            device = turn.device
            if device not in at:
                at[device] = seen.to(device)
            with turn.brought():
                x = self._run(layer, x.to(device), at[device])
        return x

    def _run(self, layer: nn.Module, x: Tensor, seen: object) -> Tensor:
        if self.gradient_checkpointing and self.training and torch.is_grad_enabled():
            return self._gradient_checkpointing_func(layer, x, seen)
        return cast(Tensor, layer(x, seen))

    # transformers puts its own here under this name; see its ``gradient_checkpointing_enable``.
    def _gradient_checkpointing_func(self, layer: nn.Module, *inputs: object) -> Tensor:
        return cast(Tensor, checkpoint(layer, *inputs, use_reentrant=False))


def visible(real: Tensor) -> Tensor:
    """Return who sees whom, (B, 1, T, T): real tokens before it, and every token itself."""
    tokens = real.shape[1]
    causal = torch.ones(tokens, tokens, dtype=torch.bool, device=real.device).tril()
    itself = torch.eye(tokens, dtype=torch.bool, device=real.device)
    return ((causal & real[:, None, :]) | itself)[:, None]


def project(
    linear: nn.Module,
    x: Tensor,
    *,
    norm: nn.Module | None = None,
    gated: bool = False,
    onto: Tensor | None = None,
) -> Tensor:
    """Return ``onto + gate(linear(norm(x)))``; what is not given is left out.

    A quantised linear does it in one call where it can, and then adds in place.

    :param norm: an RMS norm, with ``weight`` and ``eps``.
    :param gated: the first half of the outputs goes through SiLU and multiplies the second half.
    """
    fused = getattr(linear, "project", None)
    if fused is not None:
        weight, eps = (norm.weight, norm.eps) if norm is not None else (None, 0.0)
        done = fused(x, weight, eps, gated, onto)
        if done is not None:
            return cast(Tensor, done)
    out = linear(x if norm is None else norm(x))
    if gated:
        gate, value = out.chunk(2, dim=-1)
        out = F.silu(gate).mul_(value)
    return cast(Tensor, out if onto is None else onto + out)
