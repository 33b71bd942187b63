"""P-Tuning v2: learned keys and values that every layer sees before the first token.

The parameters lie at ``transformer.prefix_encoder`` in all generations. The keys are used as they
are, not rotated, and the tokens are still counted from 0.

Shapes: P prefix entries, L layers, G key/value heads, D head size, W = 2 L G D.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..errors import CheckpointError
from .attention import Past

_LONGEST = 1 << 16
DROPOUT = 0.1


@dataclass(frozen=True)
class PrefixConfig:
    """The shape of a prefix."""

    length: int
    """P, the ``pre_seq_len`` of a configuration."""
    layers: int
    kv_heads: int
    head_dim: int
    hidden_size: int
    """Of the model: the middle of the projection."""
    projection: bool = False
    narrow: bool = False
    """With a projection: the table holds ``hidden_size`` numbers a row (generation 1), not W."""

    def __post_init__(self) -> None:
        if type(self.length) is not int or not 1 <= self.length <= _LONGEST:
            raise CheckpointError(
                f"config.json: pre_seq_len is {self.length!r}; "
                f"expected a whole number from 1 to {_LONGEST}"
            )

    @property
    def width(self) -> int:
        """W."""
        return 2 * self.layers * self.kv_heads * self.head_dim


class PrefixEncoder(nn.Module):
    """The learned table, and the projection that some prefixes were trained through."""

    def __init__(self, config: PrefixConfig) -> None:
        super().__init__()
        self.config = config
        across = config.hidden_size if config.projection and config.narrow else config.width
        table = torch.empty(config.length, across)
        self.embedding = nn.Embedding(config.length, across, _weight=table)
        self.trans: nn.Sequential | None = None
        if config.projection:
            self.trans = nn.Sequential(
                nn.Linear(across, config.hidden_size),
                nn.Tanh(),
                nn.Linear(config.hidden_size, config.width),
            )

    def forward(self) -> Tensor:
        """Return keys, then values, of every layer: (L, P, 2G, D)."""
        config = self.config
        flat = self.embedding.weight if self.trans is None else self.trans(self.embedding.weight)
        each = F.dropout(
            flat.view(config.length, config.layers, 2 * config.kv_heads, config.head_dim),
            DROPOUT,
            self.training,
        )
        return each.transpose(0, 1)


class Prefixed(Past):
    """A prefix in front of rows that have no cache.

    :param kv: what the encoder returns, (L, P, 2G, D).
    """

    def __init__(self, kv: Tensor) -> None:
        self.kv = kv

    def extend(self, layer: int, kv: Tensor) -> tuple[Tensor, Tensor]:
        """Put the prefix before the new keys and values, (B, T, 2G, D)."""
        front = self.kv[layer].to(kv).expand(kv.shape[0], -1, -1, -1)
        both = torch.cat((front, kv), dim=1).transpose(1, 2)  # (B, 2G, P + T, D)
        keys, values = both.chunk(2, dim=1)
        return keys, values


def beside_prefix(mask: Tensor | None, length: int, ids: Tensor) -> Tensor:
    """Return a mask (B, 1, T, P + T) in which every query sees all P entries of the prefix.

    :param mask: (B, 1, T, T), or None where each token sees those before it.
    """
    rows, tokens = ids.shape
    if mask is None:
        mask = torch.ones(tokens, tokens, dtype=torch.bool, device=ids.device).tril()[None, None]
    return F.pad(mask.expand(rows, -1, -1, -1), (length, 0), value=True)
