"""The shapes of published models, for plans made before anything was fetched."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from types import MappingProxyType

from ..catalog import lookup
from .causal import CausalModel
from .chatglm import ChatGlm, ChatGlmConfig
from .glm import Glm, GlmConfig
from .prefix import PrefixConfig

Shape = GlmConfig | ChatGlmConfig

_FIRST = ChatGlmConfig(
    vocab_size=130_528,
    hidden_size=4_096,
    ffn_size=16_384,
    layers=28,
    heads=32,
    context_length=2_048,
)
_SECOND = GlmConfig(
    vocab_size=65_024,
    hidden_size=4_096,
    ffn_size=13_696,
    layers=28,
    heads=32,
    kv_heads=2,
    head_dim=128,
    context_length=8_192,
    rotary_dim=64,
    qkv_bias=True,
)
_FOURTH = replace(_SECOND, vocab_size=151_552, layers=40)
_FOURTH_0414 = replace(_FOURTH, context_length=32_768, sandwich=True)
_EDGE = replace(
    _SECOND,
    vocab_size=59_264,
    hidden_size=2_048,
    ffn_size=6_144,
    heads=16,
    kv_heads=4,
    rotary_dim=128,
    qkv_bias=False,
)
_SMOLLM2 = replace(
    _EDGE,
    vocab_size=49_152,
    hidden_size=576,
    ffn_size=1_536,
    layers=30,
    heads=9,
    kv_heads=3,
    head_dim=64,
    rotary_dim=64,
    context_length=2_048,
    tied_head=True,
)

SHAPES: Mapping[str, Shape] = MappingProxyType(
    {
        "smollm2-135m-instruct": _SMOLLM2,
        **dict.fromkeys(("chatglm", "chatglm-6b", "chatglm-6b-int8", "chatglm-6b-int4"), _FIRST),
        **dict.fromkeys(("chatglm2", "chatglm2-6b", "chatglm2-6b-int4"), _SECOND),
        "chatglm2-6b-32k": replace(_SECOND, context_length=32_768),
        **dict.fromkeys(("chatglm3", "chatglm3-6b", "chatglm3-6b-base"), _SECOND),
        "chatglm3-6b-32k": replace(_SECOND, context_length=32_768),
        "chatglm3-6b-128k": replace(_SECOND, context_length=131_072),
        **dict.fromkeys(("glm4", "glm-4-9b", "glm-4-9b-hf"), _FOURTH),
        "glm-4-9b-chat": replace(_FOURTH, context_length=131_072),
        "glm-4-9b-chat-hf": replace(_FOURTH, context_length=131_072),
        "glm-4-9b-chat-1m": replace(_FOURTH, kv_heads=4, context_length=1_048_576),
        "glm-4-9b-chat-1m-hf": replace(_FOURTH, kv_heads=4, context_length=1_048_576),
        **dict.fromkeys(("glm4-0414", "glm-4-9b-0414"), _FOURTH_0414),
        "glm-edge-1.5b-chat": _EDGE,
        "glm-edge-4b-chat": replace(
            _EDGE, hidden_size=3_072, ffn_size=8_192, layers=40, heads=24, kv_heads=6
        ),
    }
)
"""By the names of the catalog, and by those of the families."""

QUANTISED = MappingProxyType(
    {
        "smollm2-135m-instruct": "int4",
        **{"chatglm-6b-int8": "int8", "chatglm-6b-int4": "int4", "chatglm2-6b-int4": "int4"},
    }
)
"""What was published, or is kept here, with rounded weights."""

ROUNDED_TABLE = 1 + 2 / 32
"""Bytes of a number of a token table in glmkit's own layout: int8, a scale for each 32."""
TABLES = MappingProxyType({"smollm2-135m-instruct": ROUNDED_TABLE})
"""Bytes of a number of the token table, where it is rounded too."""


def published(name: str) -> tuple[str, Shape] | None:
    """Return the proper name and the shape of a published model; None where neither is known.

    :param name: of the catalog, an alias, a hub id or a family, in any case.
    """
    entry = lookup(name, "model")
    proper = entry.name if entry is not None else name.lower()
    shape = SHAPES.get(proper)
    return None if shape is None else (proper, shape)


def architecture(shape: Shape) -> Callable[[Shape], CausalModel]:
    """Return what builds a model of a shape."""
    return ChatGlm if isinstance(shape, ChatGlmConfig) else Glm  # type: ignore[return-value]


def with_prefix(shape: Shape, length: int) -> Shape:
    """Return the shape with a P-Tuning prefix of so many entries, without projection."""
    sizes = (shape.layers, shape.kv_heads, shape.head_dim, shape.hidden_size)
    narrow = isinstance(shape, ChatGlmConfig)
    return replace(shape, prefix=PrefixConfig(length, *sizes, narrow=narrow))
