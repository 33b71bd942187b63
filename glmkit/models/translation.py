"""The original layout of generations 2, 3 and GLM-4-9B and Hugging Face's `glm`: each as the other.

Both hold the same numbers under other names: what is one fused tensor here is rows of it there.
The configuration of each is read into a :class:`~glmkit.models.glm.GlmConfig` and written from it.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import torch

from ..errors import CheckpointError
from .glm import Glm, GlmConfig
from .layouts import HUB

Rows = tuple[str, int, int]
"""A tensor's name here and the rows of it that make up a tensor there."""


def pairs(config: GlmConfig) -> Iterator[tuple[str, tuple[int, ...], tuple[tuple[str, int], ...]]]:
    """Yield each original tensor: its name, shape, and its parts in Hugging Face's layout.

    A part is a name and how many of the rows it holds, in their order.
    """
    q, kv = config.heads * config.head_dim, config.kv_heads * config.head_dim
    with torch.device("meta"):
        model = Glm(config)
    for stem, module in model.named_modules():
        for leaf, meta in module.named_parameters(recurse=False):
            stems = HUB.sources(stem)
            rows = (q, kv, kv) if len(stems) == 3 else (meta.shape[0],)
            parts = tuple((f"{s}.{leaf}", n) for s, n in zip(stems, rows, strict=True))
            yield f"{stem}.{leaf}", tuple(meta.shape), parts


def hub_config(config: GlmConfig, raw: Mapping[str, Any], dtype: str) -> dict[str, Any]:
    """Return the config.json of a `GlmForCausalLM`, every field of the shape set.

    :param raw: the original config.json, for the special tokens' ids.
    :param dtype: what the weights are stored in, as torch names it.
    """
    made: dict[str, Any] = {
        "architectures": ["GlmForCausalLM"],
        "model_type": "glm",
        "vocab_size": config.vocab_size,
        "hidden_size": config.hidden_size,
        "intermediate_size": config.ffn_size,
        "num_hidden_layers": config.layers,
        "num_attention_heads": config.heads,
        "num_key_value_heads": config.kv_heads,
        "head_dim": config.head_dim,
        "hidden_act": "silu",
        "attention_bias": config.qkv_bias,
        "attention_dropout": raw.get("attention_dropout", 0.0),
        "max_position_embeddings": config.context_length,
        "rms_norm_eps": config.norm_eps,
        "rope_parameters": _rope(config),
        "tie_word_embeddings": config.tied_head,
        "use_cache": True,
        "dtype": dtype,
    }
    return made | {name: raw.get(name) for name in _IDS}


_IDS = ("bos_token_id", "eos_token_id", "pad_token_id")


def _rope(config: GlmConfig) -> dict[str, Any]:
    rope: dict[str, Any] = {
        "rope_type": "default",
        "rope_theta": config.rope_theta,
        "partial_rotary_factor": config.rotary_dim / config.head_dim,
    }
    if config.position_scale != 1:
        rope |= {"rope_type": "linear", "factor": config.position_scale}
    return rope


def original_config(
    config: GlmConfig, raw: Mapping[str, Any], family: str, dtype: str
) -> dict[str, Any]:
    """Return the config.json of an original checkpoint.

    :param raw: the config.json of the `GlmForCausalLM`.
    :param family: which family the model is of; its name goes into the file, as a hint.
    :param dtype: what the weights are stored in, as torch names it.
    :raises CheckpointError: if the original layout cannot say what the model is.
    """
    ratio = _ratio(config)
    name = _NAMES.get(family, _NAMES["chatglm3"])
    if config.position_scale != 1:
        name = "chatglm2-6b-32k"
    made: dict[str, Any] = {
        "_name_or_path": name,
        "architectures": ["ChatGLMModel"],
        "model_type": "chatglm",
        "add_bias_linear": False,
        "add_qkv_bias": config.qkv_bias,
        "apply_query_key_layer_scaling": True,
        "apply_residual_connection_post_layernorm": False,
        "attention_dropout": raw.get("attention_dropout", 0.0),
        "attention_softmax_in_fp32": True,
        "bias_dropout_fusion": True,
        "ffn_hidden_size": config.ffn_size,
        "fp32_residual_connection": False,
        "hidden_dropout": 0.0,
        "hidden_size": config.hidden_size,
        "kv_channels": config.head_dim,
        "layernorm_epsilon": config.norm_eps,
        "multi_query_attention": True,
        "multi_query_group_num": config.kv_heads,
        "num_attention_heads": config.heads,
        "num_hidden_layers": config.layers,
        "num_layers": config.layers,
        "original_rope": True,
        "padded_vocab_size": config.vocab_size,
        "post_layer_norm": True,
        "rmsnorm": True,
        "rope_ratio": ratio,
        "seq_length": config.context_length,
        "tie_word_embeddings": config.tied_head,
        "torch_dtype": dtype,
        "use_cache": True,
    }
    return made | {name: raw[name] for name in _IDS if raw.get(name) is not None}


_NAMES = {"chatglm2": "chatglm2-6b", "chatglm3": "chatglm3-6b", "glm4": "glm-4-9b"}


def _ratio(config: GlmConfig) -> float:
    """Return ``rope_ratio``: it stretches ChatGLM2's positions, and the base of later models."""
    if config.rotary_dim * 2 != config.head_dim:
        raise CheckpointError(
            f"{config.rotary_dim} of {config.head_dim} components of each head turn with the "
            "position; the original layout is always half of them, so it cannot hold this model"
        )
    if config.position_scale != 1 and config.rope_theta != _THETA:
        raise CheckpointError(
            f"rope_theta {config.rope_theta} and factor {config.position_scale} at once; the "
            "original layout has one rope_ratio for both, so it cannot hold this model"
        )
    scaled = config.position_scale != 1
    ratio = config.position_scale if scaled else config.rope_theta / _THETA
    return int(ratio) if ratio == int(ratio) else ratio


_THETA = 10_000.0
