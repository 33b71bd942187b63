"""What attention needs of the keys and values before the new tokens, and attention by torch.

Shapes: B rows, T new tokens, S tokens seen so far (cached and new), H query heads, G key/value
heads, D head size.
"""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn


class Past:
    """Keys and values before the new tokens; see `runtime/past.py` for those of a cache."""

    def extend(self, layer: int, kv: Tensor) -> tuple[Tensor, Tensor]:
        """Store new keys, then values, (B, T, 2G, D); return all that the new tokens may see.

        :return: keys and values, each (B, G, S, D).
        """
        raise NotImplementedError

    def sees(self, like: Tensor, causal: bool) -> tuple[Tensor | None, bool]:
        """Return who sees whom where the caller has no mask of its own.

        :param like: the mask is on its device.
        :param causal: whether the caller says that each token sees those before it.
        :return: a mask, True where a query may see a key, (B or 1, 1, T, S); and without one,
            whether each token sees those before it only.
        """
        return None, causal

    def attend(self, layer: int, qkv: Tensor, turns: Tensor | None) -> Tensor | None:
        """Do all of attention in one call, each token seeing those before it in its row.

        :param qkv: (B, T, H + 2G, D), queries and keys not turned yet.
        :param turns: their rotation, complex (B, T, 1, n), of the first n pairs of a head.
        :return: (B, T, H D); None where that can't be.
        """
        return None

    def run(self, stack: nn.Module, x: Tensor, turns: Tensor) -> Tensor | None:
        """Send ``x`` (B, T, hidden) through all blocks in one call; None where that can't be.

        It may be changed in place. Each token sees those before it in its row.
        """
        return None


def mixed(
    q: Tensor,
    kv: Tensor,
    *,
    layer: int,
    mask: Tensor | None,
    causal: bool,
    past: Past | None,
) -> Tensor:
    """Store new keys and values, and return what the queries see, mixed: (B, T, H D).

    :param q: (B, T, H, D).
    :param kv: keys, then values, (B, T, 2G, D).
    :param mask: True where a query may see a key, (B, 1, T, S); None: as ``past`` knows.
    """
    if past is not None:
        k, v = past.extend(layer, kv)  # (B, G, S, D)
        if mask is None:
            mask, causal = past.sees(q, causal)
    else:
        k, v = kv.transpose(1, 2).chunk(2, dim=1)
    shared = q.shape[2] != k.shape[1]
    seen = F.scaled_dot_product_attention(
        q.transpose(1, 2), k, v, attn_mask=mask, is_causal=causal, enable_gqa=shared
    )
    return seen.transpose(1, 2).reshape(q.shape[0], q.shape[1], -1)
