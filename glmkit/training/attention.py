"""Attention over a row of several examples, of which none sees another.

What each example sees is parted into pieces that kernels know: a *context*, all of whose tokens
see all of it (ChatGLM-6B), and what follows, where each token sees those before it. A P-Tuning
prefix stands before the keys of every example.

Letters: N tokens of the row, T of one example, H query heads, G key/value heads, D head size,
P entries of the prefix, L layers.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from functools import lru_cache
from itertools import accumulate
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from ..models.attention import Past
from ..models.causal import CausalModel, ModelConfig
from .turning import turned


class Piece(NamedTuple):
    """Neighbouring tokens of an example that see it in the same way."""

    start: int
    """In the example."""
    end: int
    """They see the example up to here: all of it, or each as far as itself."""
    causal: bool


def placed(model: CausalModel, ids: Tensor, lengths: Sequence[int]) -> tuple[Tensor, Blocks]:
    """Return the positions of a row's tokens, and who sees whom.

    :param ids: (N,): examples of these lengths, one behind another.
    :return: (1, N), or (1, 2, N) where positions count along two axes; and what
        :meth:`CausalModel.hidden` takes as ``past``. The model's prefix is worked out once.
    :raises UsageError: if an example is none that the model can learn from.
    """
    starts = [model.start(each[None]) for each in torch.split(ids, list(lengths))]
    positions = torch.cat([each.positions for each in starts], dim=-1)
    pieces = [
        _pieces(length, 0 if start.mask is None else int(start.mask[0, 0, 0].sum()))
        for length, start in zip(lengths, starts, strict=True)
    ]
    prefix = None if model.prefix is None else model.prefix()
    return positions, Blocks(model.config, lengths, pieces, prefix)


def _pieces(length: int, context: int) -> list[Piece]:
    """Part an example whose first token sees so many tokens; 0: each sees those before it."""
    if not context:
        return [Piece(0, length, causal=True)]
    found = [Piece(0, context, causal=False), Piece(context, length, causal=True)]
    return [each for each in found if each.start < each.end]


class Blocks(Past):
    """What the tokens of a row see, each those of its own example.

    :param lengths: tokens of each example.
    :param pieces: of each example.
    :param prefix: keys, then values, (L, P, 2G, D), that all see; None: there is none.
    """

    def __init__(
        self,
        config: ModelConfig,
        lengths: Sequence[int],
        pieces: Sequence[Sequence[Piece]],
        prefix: Tensor | None = None,
    ) -> None:
        self.heads, self.kv_heads = config.heads, config.kv_heads
        self.lengths, self.pieces, self.prefix = list(lengths), pieces, prefix
        self.ahead = 0 if prefix is None else prefix.shape[1]
        self._masks: dict[tuple[torch.device, int, int], Tensor] = {}
        self._joined: dict[torch.device, list[Joined]] = {}

    def attend(self, layer: int, qkv: Tensor, turns: Tensor | None) -> Tensor:
        """Turn queries and keys, and mix what each token sees.

        :param qkv: (1, N, H + 2G, D).
        :param turns: complex (1, N, 1, n); None: they are turned already.
        :return: (1, N, H D).
        """
        if turns is not None:
            qkv = turned(qkv, turns, self.heads + self.kv_heads)
        front = None if self.prefix is None else self.prefix[layer].to(qkv)
        ragged = _ragged(qkv)
        if ragged is not None:
            return self._at_once(qkv[0], front, ragged).flatten(1)[None]
        return self._one_by_one(qkv, front).flatten(2)

    def _one_by_one(self, qkv: Tensor, front: Tensor | None) -> Tensor:
        """Return (1, N, H, D), a call of torch's for every piece."""
        found: list[Tensor] = []
        sizes = (self.heads, 2 * self.kv_heads)
        ahead = None if front is None else front.transpose(0, 1)[None]  # (1, 2G, P, D)
        for block, pieces in zip(torch.split(qkv, self.lengths, dim=1), self.pieces, strict=True):
            q, kv = block.transpose(1, 2).split_with_sizes(sizes, dim=1)
            if ahead is not None:
                kv = torch.cat((ahead, kv), dim=2)
            found += [self._piece(q, kv, each) for each in pieces]
        mixed = found[0] if len(found) == 1 else torch.cat(found, dim=2)
        return mixed.transpose(1, 2)

    def _piece(self, q: Tensor, kv: Tensor, piece: Piece) -> Tensor:
        """Return what a piece of an example sees, (1, H, tokens, D).

        :param q: (1, H, T, D), of the whole example.
        :param kv: (1, 2G, P + T, D).
        """
        k, v = kv[:, :, : self.ahead + piece.end].chunk(2, dim=1)
        plain = piece.causal and not piece.start and not self.ahead
        return F.scaled_dot_product_attention(
            q[:, :, piece.start : piece.end],
            k,
            v,
            attn_mask=None if plain or not piece.causal else self._mask(q.device, piece),
            is_causal=plain,
            enable_gqa=self.heads != self.kv_heads,
        )

    def _mask(self, device: torch.device, piece: Piece) -> Tensor:
        """Return who sees whom where keys stand before the first query; for all layers once."""
        before, tokens = self.ahead + piece.start, piece.end - piece.start
        key = (device, before, tokens)
        if key not in self._masks:
            own = torch.arange(before + tokens, device=device)
            self._masks[key] = own <= own[before:, None]
        return self._masks[key]

    def _at_once(self, qkv: Tensor, front: Tensor | None, ragged: Ragged) -> Tensor:
        """Return (N, H, D), one call of a kernel for all pieces of a kind."""
        sizes = [self.heads, self.kv_heads, self.kv_heads]
        q, k, v = torch.split(qkv, sizes, dim=1)
        if front is not None:
            k, v = (torch.cat(each) for each in zip(front.chunk(2, dim=1), (k, v), strict=True))
        if qkv.device not in self._joined:
            self._joined[qkv.device] = joined(self.lengths, self.pieces, self.ahead, qkv.device)
        kinds = self._joined[qkv.device]
        if len(kinds) == 1 and front is None:
            return ragged(q, k, v, kinds[0])
        found = [ragged(q[each.queries], k[each.keys], v[each.keys], each) for each in kinds]
        order = torch.cat([each.queries for each in kinds]).argsort()
        return torch.cat(found)[order]


class Joined(NamedTuple):
    """All pieces of one kind, one behind another."""

    causal: bool
    """The last query of a piece sees all its keys, the one before it all but one, ..."""
    queries: Tensor
    """Where they are in the row, int64."""
    keys: Tensor
    """Where they are in the prefix and the row behind it, int64."""
    query_ends: Tensor
    """Where each piece ends, after a 0, int32."""
    key_ends: Tensor
    most_queries: int
    """Of a piece."""
    most_keys: int


def joined(
    lengths: Sequence[int],
    pieces: Sequence[Sequence[Piece]],
    ahead: int,
    device: torch.device,
) -> list[Joined]:
    """Sort the pieces of a row by their kind."""
    starts = [0, *accumulate(lengths)]
    found = []
    for causal in (False, True):
        own = [
            (start, each)
            for start, some in zip(starts, pieces, strict=False)
            for each in some
            if each.causal == causal
        ]
        if own:
            queries = [range(start + each.start, start + each.end) for start, each in own]
            keys = [
                [*range(ahead), *range(ahead + start, ahead + start + each.end)]
                for start, each in own
            ]
            found.append(_joined(causal, queries, keys, device))
    return found


def _joined(
    causal: bool,
    queries: Sequence[Sequence[int]],
    keys: Sequence[Sequence[int]],
    device: torch.device,
) -> Joined:
    flat = [torch.tensor([at for each in some for at in each]) for some in (queries, keys)]
    sizes = [list(map(len, some)) for some in (queries, keys)]
    ends = [torch.tensor([0, *accumulate(each)], dtype=torch.int32) for each in sizes]
    moved = [each.to(device) for each in (*flat, *ends)]
    return Joined(causal, moved[0], moved[1], moved[2], moved[3], max(sizes[0]), max(sizes[1]))


Ragged = Callable[[Tensor, Tensor, Tensor, Joined], Tensor]
"""Takes queries (n, H, D), keys and values (m, G, D) of all pieces; returns (n, H, D)."""


def _ragged(like: Tensor) -> Ragged | None:
    """Return the kernel for pieces of different lengths that takes such numbers, if one does."""
    if not like.is_cuda or like.dtype not in (torch.float16, torch.bfloat16):
        return None
    if like.shape[-1] % 8 or like.shape[-1] > 256:
        return None
    return _flash() if torch.cuda.get_device_capability(like.device) >= (8, 0) else None


@lru_cache(maxsize=1)
def _flash() -> Ragged | None:
    """Return torch's flash attention for pieces of different lengths, where torch has it."""
    try:
        from torch.nn.attention.varlen import varlen_attn
    except ImportError:  # before torch 2.10
        return None
    if not {"window_size", "enable_gqa"} <= set(inspect.signature(varlen_attn).parameters):
        return None

    def run(q: Tensor, k: Tensor, v: Tensor, pieces: Joined) -> Tensor:
        out = varlen_attn(
            *(q, k, v, pieces.query_ends, pieces.key_ends),
            *(pieces.most_queries, pieces.most_keys),
            window_size=(-1, 0) if pieces.causal else (-1, -1),
            enable_gqa=q.shape[1] != k.shape[1],
        )
        return out if isinstance(out, Tensor) else out[0]

    return run
