"""How much memory a model takes, foretold from its shape."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from torch import nn

from ..models.causal import CausalModel, ModelConfig
from .headers import PREFIX, leaves
from .quantize import GROUP

TOKENS = 1_000


@dataclass(frozen=True)
class Memory:
    """Bytes that a model takes, without the activations of the moment."""

    weights: Mapping[str, int]
    """By dtype, and by ``quantize``, with half precision for what is not quantised then. The token
    table stays as it is stored, prefixes in single precision."""
    cache_per_1000_tokens: Mapping[str, int]
    """Keys and values of one answer, by dtype."""


@dataclass
class _Counts:
    """Numbers by what becomes of them."""

    matrices: int = 0
    rows: int = 0
    small: int = 0
    prefix: int = 0


def footprint(model: CausalModel, table: int) -> Memory:
    """Return what a model takes.

    :param model: on the meta device.
    :param table: bytes of the token table as it is stored.
    """
    counts = _counted(model)
    config = model.config
    head = config.vocab_size * config.hidden_size
    kept = table + 4 * counts.prefix
    rounded = head + 2 * config.vocab_size  # int8 also under int4: it costs most quality
    scales = 2 * counts.rows
    return Memory(
        {
            **{
                dtype: _plain(counts, size, head, table, tied=config.tied_head) + kept
                for dtype, size in (("float32", 4), ("bfloat16", 2), ("float16", 2))
            },
            "int8": counts.matrices + scales + 2 * counts.small + rounded + kept,
            "int4": counts.matrices // 2
            + 2 * 2 * counts.matrices // GROUP
            + 2 * counts.small
            + rounded
            + kept,
        },
        {dtype: size * _cache(config) for dtype, size in (("float32", 4), ("float16", 2))},
    )


def _plain(counts: _Counts, size: int, head: int, table: int, *, tied: bool) -> int:
    """Return bytes beside the token table; a tied head shares it where the dtype is the same."""
    own_head = 0 if tied and table == size * head else size * head
    return size * (counts.matrices + counts.small) + own_head


def _counted(model: CausalModel) -> _Counts:
    counts = _Counts()
    for stem, module in leaves(model):
        if stem in (model.HEAD, model.EMBEDDING):
            continue
        total = sum(each.numel() for each in module.parameters(recurse=False))
        if stem.startswith(PREFIX):
            counts.prefix += total
        elif isinstance(module, nn.Linear):
            counts.matrices += module.weight.numel()
            counts.rows += module.out_features
            counts.small += total - module.weight.numel()
        else:
            counts.small += total
    return counts


def _cache(config: ModelConfig) -> int:
    return 2 * config.layers * config.kv_heads * config.head_dim * TOKENS
