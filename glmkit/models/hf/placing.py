"""Where new tokens stand and what they see, from what transformers' callers hand over.

Shapes: B rows, T new tokens, C tokens in the cache, S = C + T, P entries of a prefix, G key/value
heads, D head size.
"""

from __future__ import annotations

import torch
from torch import Tensor
from transformers.cache_utils import Cache

from ...errors import UsageError
from ..attention import Past
from ..causal import CausalModel, Start, visible
from ..chatglm import ChatGlm


class Remembered(Past):
    """A cache with the model's prefix before it, for the plain modules.

    The prefix is no part of the cache, so that the cache is as long as the tokens it has seen.

    :param prefix: (L, P, 2G, D).
    """

    def __init__(self, cache: Cache | None, prefix: Tensor | None) -> None:
        self.cache, self.prefix = cache, prefix

    def extend(self, layer: int, kv: Tensor) -> tuple[Tensor, Tensor]:
        """Store (B, T, 2G, D); return all keys and all values, each (B, G, P + S, D)."""
        keys, values = kv.transpose(1, 2).chunk(2, dim=1)
        if self.cache is not None:
            keys, values = self.cache.update(keys, values, layer)
        if self.prefix is None:
            return keys, values
        front = self.prefix[layer].to(kv).expand(kv.shape[0], -1, -1, -1).transpose(1, 2)
        ahead, before = front.chunk(2, dim=1)
        return torch.cat((ahead, keys), dim=2), torch.cat((before, values), dim=2)


def place(
    plain: CausalModel,
    ids: Tensor,
    *,
    attention_mask: Tensor | None,
    position_ids: Tensor | None,
    cached: int,
) -> Start:
    """Return positions, and the mask (B, 1, T, S), True = sees; None: each sees all before it.

    :param ids: the new tokens, (B, T).
    :param attention_mask: (B, S), 1 = real token; or whole, (B, 1, T, S): see :func:`_whole`.
    :param position_ids: (B, T), for ChatGLM-6B (B, 2, T); None: real tokens count from 0.
    :param cached: C.
    :raises UsageError: if the mask has another shape, or ChatGLM-6B continues without positions.
    """
    real: Tensor | None
    mask: Tensor | None
    if attention_mask is not None and attention_mask.dim() == 4:
        real, mask = None, _whole(plain, attention_mask, ids, cached)
    else:
        real = _real(attention_mask, ids, cached)
        mask = _continued(ids, real, cached) if cached else None
    if cached:
        if position_ids is None:
            position_ids = _behind(plain, ids, real, cached)
        return Start(position_ids, mask)
    if mask is not None and position_ids is not None:
        return Start(position_ids, mask)
    start = plain.start(ids, real)
    return Start(
        start.positions if position_ids is None else position_ids,
        start.mask if mask is None else mask,
    )


def _real(mask: Tensor | None, ids: Tensor, cached: int) -> Tensor | None:
    """Check a mask (B, S); return None where no token is a pad."""
    if mask is None:
        return None
    expected = (ids.shape[0], cached + ids.shape[1])
    if mask.shape != expected:
        raise UsageError(
            f"attention_mask is {list(mask.shape)}; expected {list(expected)}: a 1 for every real "
            "token and a 0 for every pad, those in the cache included"
        )
    real = mask.to(ids.device).bool()
    return None if bool(real.all()) else real


def _whole(plain: CausalModel, mask: Tensor, ids: Tensor, cached: int) -> Tensor:
    """Read a mask (B, 1, T, S) that says all: bool, or numbers that are added (0 = sees).

    A bool mask means True = sees, as everywhere in transformers. ChatGLM-6B's original code and
    tokenizer mean the opposite, and so does a bool mask for that model.
    """
    new, seen = ids.shape[1], cached + ids.shape[1]
    if mask.shape[-2:] != (new, seen):
        raise UsageError(
            f"attention_mask is {list(mask.shape)}; a mask of four dimensions must end in "
            f"{[new, seen]} (new tokens, all tokens)"
        )
    mask = mask.to(ids.device)
    if mask.dtype != torch.bool:
        sees = mask >= 0
    else:
        sees = ~mask if isinstance(plain, ChatGlm) else mask
    # A row that sees nothing (a pad) would become NaN.
    return sees | torch.eye(new, seen, dtype=torch.bool, device=ids.device).roll(cached, -1)


def _behind(plain: CausalModel, ids: Tensor, real: Tensor | None, cached: int) -> Tensor:
    """Return the positions (B, T) of tokens behind the cached ones."""
    if isinstance(plain, ChatGlm):
        raise UsageError(
            "ChatGLM-6B counts positions from where its prompt has [gMASK] and <sop>, which a "
            "cache does not tell: pass position_ids (B, 2, T), or all tokens without the cache"
        )
    if real is not None:
        return (real.cumsum(-1) - 1).clamp(min=0)[:, -ids.shape[1] :]
    return torch.arange(cached, cached + ids.shape[1], device=ids.device).expand_as(ids)


def _continued(ids: Tensor, real: Tensor | None, cached: int) -> Tensor | None:
    """Return what tokens behind a cache see, (B, 1, T, S): real tokens up to themselves."""
    new = ids.shape[1]
    if real is not None:
        return visible(real)[:, :, -new:]
    if new == 1:
        return None
    causal = torch.ones(new, cached + new, dtype=torch.bool, device=ids.device)
    return causal.tril(cached)[None, None]


def as_rows(mask: Tensor) -> Tensor:
    """Turn ChatGLM-6B's original mask, bool (B, 1, T, T), True = hidden, into (B, T), 1 = real.

    The last token sees all real ones, those before it.
    """
    return (~mask[:, 0, -1]).long()
