"""Which files on disk are which model: a table of layouts, tried in order.

A layout says how to recognise a parsed config.json, how to read the model's shape from it, and
where each tensor of :class:`~glmkit.models.glm.Glm` lies under other names. What glmkit knows of
but cannot run is refused here, by name.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

from ..errors import CheckpointError
from .causal import CausalModel, ModelConfig
from .chatglm import ChatGlm, ChatGlmConfig
from .glm import Glm, GlmConfig
from .prefix import PrefixConfig

Raw = Mapping[str, Any]


@dataclass(frozen=True)
class Layout:
    """One way in which checkpoints are written."""

    name: str
    matches: Callable[[Raw], bool]
    model: Callable[[Any], CausalModel]
    shape: Callable[[Raw], ModelConfig]
    keys: Mapping[str, tuple[str, ...]]
    """Stems of our names -> stems of theirs, ``#`` being a layer's number; several are stacked
    in this order. Empty: the names are the same."""
    unused: tuple[str, ...] = ()
    """Tensors that files hold and nobody needs, as regular expressions."""

    def sources(self, stem: str) -> tuple[str, ...]:
        """Return the stems on disk that make up our module ``stem``."""
        if not self.keys:
            return (stem,)
        number = re.search(r"\.(\d+)\.", stem)
        pattern = stem if number is None else stem.replace(number[0], ".#.", 1)
        layer = number[1] if number else ""
        return tuple(each.replace("#", layer) for each in self.keys[pattern])

    def ignores(self, key: str) -> bool:
        """Tell whether the tensor ``key`` on disk is known to be of no use."""
        return any(re.fullmatch(each, key) for each in self.unused)


def recognise(raw: Raw) -> Layout:
    """Return the layout that a parsed config.json describes.

    :raises CheckpointError: if it is none that glmkit runs; says which it is where that is known.
    """
    for found, reason in _REFUSED:
        if found(raw):
            raise CheckpointError(reason)
    for layout in LAYOUTS:
        if layout.matches(raw):
            return layout
    known = ", ".join(layout.name for layout in LAYOUTS)
    raise CheckpointError(
        f"config.json: model_type {raw.get('model_type')!r} is no layout that glmkit runs; "
        f"it runs {known}"
    )


def _pick(raw: Raw, names: Mapping[str, str]) -> dict[str, Any]:
    """Return ours -> value for a table of ours -> theirs."""
    missing = sorted(theirs for theirs in names.values() if raw.get(theirs) is None)
    if missing:
        raise CheckpointError(
            f"config.json lacks {', '.join(missing)}: the model's shape is unknown; "
            "fetch the file again"
        )
    return {ours: raw[theirs] for ours, theirs in names.items()}


def _number(raw: Raw, name: str, default: float) -> float:
    value = raw.get(name, default)
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise CheckpointError(f"config.json: {name} is {value!r}; expected a number")
    return float(value)


def _first_shape(raw: Raw) -> ChatGlmConfig:
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
    # The first checkpoints put 20,000 image tokens before the text: every id is that much higher.
    shift = 20_000 if picked["vocab_size"] == _WITH_IMAGES else 0
    config = ChatGlmConfig(
        **picked,
        bos=raw.get("bos_token_id", 130_004 + shift),
        mask=raw.get("mask_token_id", 130_000 + shift),
        gmask=raw.get("gmask_token_id", 130_001 + shift),
        planar=bool(raw.get("position_encoding_2d", True)),
    )
    return replace(config, prefix=_prefix(raw, config, narrow=True))


_WITH_IMAGES = 150_528


def _prefix(raw: Raw, config: ModelConfig, *, narrow: bool = False) -> PrefixConfig | None:
    if not raw.get("pre_seq_len"):
        return None
    return PrefixConfig(
        raw["pre_seq_len"],
        config.layers,
        config.kv_heads,
        config.head_dim,
        config.hidden_size,
        projection=bool(raw.get("prefix_projection", False)),
        narrow=narrow,
    )


def _original_shape(raw: Raw) -> GlmConfig:
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
    divides = _divides_positions(raw)
    head_dim = picked["head_dim"]
    config = GlmConfig(
        **picked,
        kv_heads=raw.get("multi_query_group_num", picked["heads"]),
        rotary_dim=head_dim // 2 if type(head_dim) is int else head_dim,
        rope_theta=10_000.0 if divides else 10_000.0 * ratio,
        position_scale=ratio if divides else 1.0,
        qkv_bias=bool(raw.get("add_qkv_bias", False)),
        tied_head=bool(raw.get("tie_word_embeddings", False)),
    )
    return replace(config, prefix=_prefix(raw, config))


def _divides_positions(raw: Raw) -> bool:
    """Tell which of its two meanings ``rope_ratio`` has: chatglm2-6b-32k divides positions.

    Every later model multiplies the base. Nothing but the recorded name tells them apart.
    """
    return "chatglm2" in str(raw.get("_name_or_path", "")).lower()


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
                f"config.json: {name} is {raw[name]!r}; glmkit runs checkpoints with {usual!r} only"
            )


def _hub_shape(raw: Raw) -> GlmConfig:
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
        raise CheckpointError(f"config.json: hidden_act {raw['hidden_act']!r}; glmkit runs 'silu'")
    return GlmConfig(
        **picked,
        **_hub_rotary(raw, picked["head_dim"]),
        qkv_bias=bool(raw.get("attention_bias", False)),
        tied_head=bool(raw.get("tie_word_embeddings", False)),
    )


def _hub_rotary(raw: Raw, head_dim: object) -> dict[str, Any]:
    """Read the rotary settings, from ``rope_parameters`` or, before transformers 5, beside it."""
    rope = raw.get("rope_parameters") or raw
    if not isinstance(rope, Mapping):
        raise CheckpointError(f"config.json: rope_parameters is {rope!r}; expected a table")
    kind = rope.get("rope_type", "default")
    if kind not in ("default", "linear"):
        raise CheckpointError(
            f"config.json: rope_type {kind!r}; glmkit runs 'default' and 'linear'"
        )
    share = _number(rope, "partial_rotary_factor", _number(raw, "partial_rotary_factor", 0.5))
    return {
        "rotary_dim": int(head_dim * share) if type(head_dim) is int else head_dim,
        "rope_theta": _number(rope, "rope_theta", 10_000.0),
        "position_scale": _number(rope, "factor", 1.0) if kind == "linear" else 1.0,
    }


_HUB_KEYS = {
    "transformer.embedding.word_embeddings": ("model.embed_tokens",),
    "transformer.encoder.layers.#.input_layernorm": ("model.layers.#.input_layernorm",),
    "transformer.encoder.layers.#.self_attention.query_key_value": (
        "model.layers.#.self_attn.q_proj",
        "model.layers.#.self_attn.k_proj",
        "model.layers.#.self_attn.v_proj",
    ),
    "transformer.encoder.layers.#.self_attention.dense": ("model.layers.#.self_attn.o_proj",),
    "transformer.encoder.layers.#.post_attention_layernorm": (
        "model.layers.#.post_attention_layernorm",
    ),
    "transformer.encoder.layers.#.mlp.dense_h_to_4h": ("model.layers.#.mlp.gate_up_proj",),
    "transformer.encoder.layers.#.mlp.dense_4h_to_h": ("model.layers.#.mlp.down_proj",),
    "transformer.encoder.final_layernorm": ("model.norm",),
    "transformer.output_layer": ("lm_head",),
}


def _is_chatglm(raw: Raw) -> bool:
    return raw.get("model_type") == "chatglm"


def _is_first_generation(raw: Raw) -> bool:
    return _is_chatglm(raw) and ("inner_hidden_size" in raw or "position_encoding_2d" in raw)


_REFUSED: tuple[tuple[Callable[[Raw], bool], str], ...] = (
    (
        lambda raw: _is_chatglm(raw) and bool(raw.get("quantization_bit")),
        "this checkpoint is quantised in the original int4/int8 layout, which this version of "
        "glmkit does not read; load the unquantised one with quantize='int4'",
    ),
    (
        lambda raw: raw.get("model_type") == "glm4",
        "model_type 'glm4' (GLM-4-0414) has extra norms that this version of glmkit does not run",
    ),
)

HUB = Layout(
    "glm (Hugging Face layout)",
    matches=lambda raw: raw.get("model_type") == "glm",
    model=Glm,
    shape=_hub_shape,
    keys=_HUB_KEYS,
    unused=(r".*\.rotary_emb\.inv_freq",),
)

LAYOUTS: tuple[Layout, ...] = (
    Layout(
        "chatglm-6b (original layout of generation 1)",
        matches=_is_first_generation,
        model=ChatGlm,
        shape=_first_shape,
        keys={},
        unused=(r"transformer\.layers\.\d+\.attention\.rotary_emb\.inv_freq",),
    ),
    HUB,
    Layout(
        "chatglm (original layout of ChatGLM2, ChatGLM3 and GLM-4-9B)",
        matches=_is_chatglm,
        model=Glm,
        shape=_original_shape,
        keys={},
        unused=(r"transformer\.rotary_pos_emb\.inv_freq",),
    ),
)
