"""Reading a model's shape out of a config.json, one function per way of writing it.

Each takes the parsed file and the model's family, which settles what the fields leave open.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from ..errors import CheckpointError
from .families import GLM4_VOCABULARY
from .limits import check_field

if TYPE_CHECKING:
    from .causal import ModelConfig
    from .chatglm import ChatGlmConfig
    from .glm import GlmConfig
    from .prefix import PrefixConfig

Raw = Mapping[str, Any]

IMAGE_TOKENS = 20_000
"""The first ChatGLM-6B checkpoints put so many image tokens before the text: every id is that much
higher."""
_WITH_IMAGES = 150_528
_SHORT_CONTEXT = 8_192


def _pick(raw: Raw, names: Mapping[str, str]) -> dict[str, Any]:
    """Return ours -> value for a table of ours -> theirs, each checked under their name."""
    missing = sorted(theirs for theirs in names.values() if raw.get(theirs) is None)
    if missing:
        raise CheckpointError(
            f"config.json lacks {', '.join(missing)}: the model's shape is unknown; "
            "fetch the file again"
        )
    for ours, theirs in names.items():
        check_field(ours, raw[theirs], theirs)
    return {ours: raw[theirs] for ours, theirs in names.items()}


def _number(raw: Raw, name: str, default: float) -> float:
    value = raw.get(name, default)
    number = isinstance(value, (int, float)) and not isinstance(value, bool)
    # Compared before it is converted: a whole number may be too long for a float.
    if not number or not -_HUGE < value < _HUGE or math.isnan(value):
        raise CheckpointError(f"config.json: {name} is {shown(value)}; expected a number")
    return float(value)


_HUGE = 10**15


def _switch(raw: Raw, name: str, default: bool) -> bool:
    value = raw.get(name, default)
    if not isinstance(value, bool):
        raise CheckpointError(f"config.json: {name} is {shown(value)}; expected true or false")
    return value


def shown(value: object) -> str:
    """Return a value as messages show it: on one line, and not longer than that."""
    try:
        text = repr(value)
    except ValueError:  # a whole number of thousands of digits
        return "a number of thousands of digits"
    return text if len(text) <= 60 else f"{text[:60]}..."


def first(raw: Raw, family: str) -> ChatGlmConfig:
    """Read the shape of ChatGLM-6B."""
    picked = _pick(
        raw,
        {
            "vocab_size": "vocab_size",
            "hidden_size": "hidden_size",
            "ffn_size": "inner_hidden_size",
            "layers": "num_layers",
            "heads": "num_attention_heads",
            "context_length": "max_sequence_length",
            "norm_eps": "layernorm_epsilon",
        },
    )
    shift = IMAGE_TOKENS if picked["vocab_size"] == _WITH_IMAGES else 0
    from .chatglm import ChatGlmConfig

    config = ChatGlmConfig(
        **picked,
        bos=raw.get("bos_token_id", 130_004 + shift),
        mask=raw.get("mask_token_id", 130_000 + shift),
        gmask=raw.get("gmask_token_id", 130_001 + shift),
        planar=_switch(raw, "position_encoding_2d", True),
    )
    return replace(config, prefix=_prefix(raw, config, narrow=True))


def _prefix(raw: Raw, config: ModelConfig, *, narrow: bool = False) -> PrefixConfig | None:
    if not raw.get("pre_seq_len"):
        return None
    from .prefix import PrefixConfig

    return PrefixConfig(
        raw["pre_seq_len"],
        config.layers,
        config.kv_heads,
        config.head_dim,
        config.hidden_size,
        projection=_switch(raw, "prefix_projection", False),
        narrow=narrow,
    )


def original(raw: Raw, family: str) -> GlmConfig:
    """Read the shape of ChatGLM2, ChatGLM3 and GLM-4-9B in their own layout."""
    picked = _pick(
        raw,
        {
            "vocab_size": "padded_vocab_size",
            "hidden_size": "hidden_size",
            "ffn_size": "ffn_hidden_size",
            "layers": "num_layers",
            "heads": "num_attention_heads",
            "head_dim": "kv_channels",
            "context_length": "seq_length",
            "norm_eps": "layernorm_epsilon",
        },
    )
    _refuse_variants(raw)
    ratio = _number(raw, "rope_ratio", 1.0)
    # chatglm2-6b-32k divides positions by the ratio, every later model multiplies the base by it.
    divides = family == "chatglm2"
    head_dim = picked["head_dim"]
    kv_heads = raw.get("multi_query_group_num", picked["heads"])
    check_field("kv_heads", kv_heads, "multi_query_group_num")
    from .glm import GlmConfig

    config = GlmConfig(
        **picked,
        kv_heads=kv_heads,
        rotary_dim=head_dim // 2 if type(head_dim) is int else head_dim,
        rope_theta=10_000.0 if divides else 10_000.0 * ratio,
        position_scale=ratio if divides else 1.0,
        qkv_bias=_switch(raw, "add_qkv_bias", False),
        tied_head=_switch(raw, "tie_word_embeddings", False),
    )
    return replace(config, prefix=_prefix(raw, config))


_VARIANTS = {
    "multi_query_attention": True,
    "rmsnorm": True,
    "post_layer_norm": True,
    "add_bias_linear": False,
    "apply_residual_connection_post_layernorm": False,
}


def _refuse_variants(raw: Raw) -> None:
    """Refuse switches that no published checkpoint turns and whose arithmetic differs."""
    for name, usual in _VARIANTS.items():
        if raw.get(name, usual) is not usual:
            raise CheckpointError(
                f"config.json: {name} is {shown(raw[name])}; glmkit runs checkpoints with "
                f"{usual!r} only"
            )


def hub(raw: Raw, family: str) -> GlmConfig:
    """Read the shape of a model in Hugging Face's `glm` layout."""
    picked = _pick(
        raw,
        {
            "vocab_size": "vocab_size",
            "hidden_size": "hidden_size",
            "ffn_size": "intermediate_size",
            "layers": "num_hidden_layers",
            "heads": "num_attention_heads",
            "kv_heads": "num_key_value_heads",
            "head_dim": "head_dim",
            "context_length": "max_position_embeddings",
            "norm_eps": "rms_norm_eps",
        },
    )
    if raw.get("hidden_act", "silu") != "silu":
        said = shown(raw["hidden_act"])
        raise CheckpointError(f"config.json: hidden_act {said}; glmkit runs 'silu'")
    from .glm import GlmConfig

    return GlmConfig(
        **picked,
        **_hub_rotary(raw, picked["head_dim"]),
        qkv_bias=_switch(raw, "attention_bias", False),
        tied_head=_switch(raw, "tie_word_embeddings", False),
    )


def hub_sandwich(raw: Raw, family: str) -> GlmConfig:
    """Read the shape of GLM-4-0414, whose blocks norm what they add."""
    return replace(hub(raw, family), sandwich=True)


def _hub_rotary(raw: Raw, head_dim: object) -> dict[str, Any]:
    """Read the rotary settings, from ``rope_parameters`` or, before transformers 5, beside it."""
    rope = raw.get("rope_parameters") or raw
    if not isinstance(rope, Mapping):
        raise CheckpointError(f"config.json: rope_parameters is {shown(rope)}; expected a table")
    kind = rope.get("rope_type", "default")
    if kind not in ("default", "linear"):
        raise CheckpointError(
            f"config.json: rope_type {shown(kind)}; glmkit runs 'default' and 'linear'"
        )
    share = _number(rope, "partial_rotary_factor", _number(raw, "partial_rotary_factor", 0.5))
    # What is no size at all goes on as it is: the shape's own checks name it.
    turning = head_dim
    if isinstance(head_dim, int) and abs(head_dim) < _HUGE:
        turning = int(head_dim * share)
    return {
        "rotary_dim": turning,
        "rope_theta": _number(rope, "rope_theta", 10_000.0),
        "position_scale": _number(rope, "factor", 1.0) if kind == "linear" else 1.0,
    }


def doubts(raw: Raw) -> tuple[str, ...]:
    """Say what in a config.json runs, but is known to be wrong in some published files."""
    rope = raw.get("rope_parameters") or raw
    theta = rope.get("rope_theta", 10_000.0) if isinstance(rope, Mapping) else None
    length = raw.get("max_position_embeddings")
    if (
        raw.get("model_type") == "glm"
        and raw.get("vocab_size") == GLM4_VOCABULARY
        and theta == 10_000.0
        and type(length) is int
        and length > _SHORT_CONTEXT
    ):
        return (
            f"config.json: rope_theta is 10000.0 with a context of {length} tokens; GLM-4-9B was "
            "trained for that with 5000000.0 (rope_ratio 500), which conversions have lost before: "
            "if answers are gibberish, set it",
        )
    return ()
