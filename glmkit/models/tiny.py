"""Tiny checkpoints with random weights: every layout, a vocabulary, a few kilobytes.

For tests and for plugin authors who want the real machinery without a real model. Equal seeds
give equal files.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn

from .causal import CausalModel, ModelConfig
from .chatglm import ChatGlm, ChatGlmConfig
from .glm import Glm, GlmConfig, RmsNorm
from .layouts import HUB
from .prefix import PrefixConfig

TinyLayout = Literal["hub", "chatglm", "chatglm2", "chatglm3", "glm4-9b"]
ORIGINAL: tuple[TinyLayout, ...] = ("chatglm", "chatglm2", "chatglm3", "glm4-9b")

SPECIAL = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")
"""The first special tokens of the tiny vocabulary, ids 0, 1 and 2; then one token a byte."""

GLM_SPECIAL = (
    *("[MASK]", "[gMASK]", "[sMASK]", "<sop>", "<eop>", "sop", "eop"),
    *("<|system|>", "<|user|>", "<|assistant|>", "<|observation|>"),
)
"""The special tokens of the GLM formats; they follow the bytes, from id 259."""

IDS = {
    **{name: at for at, name in enumerate(SPECIAL)},
    **{name: len(SPECIAL) + 256 + at for at, name in enumerate(GLM_SPECIAL)},
}
"""Name of a special token -> its id."""

TINY = GlmConfig(
    vocab_size=320,
    hidden_size=64,
    ffn_size=96,
    layers=2,
    heads=4,
    kv_heads=2,
    head_dim=16,
    context_length=512,
    rotary_dim=8,
    qkv_bias=True,
)

TINY_FIRST = ChatGlmConfig(
    vocab_size=320,
    hidden_size=64,
    ffn_size=160,
    layers=2,
    heads=4,
    context_length=512,
    bos=IDS["<sop>"],
    mask=IDS["[MASK]"],
    gmask=IDS["[gMASK]"],
)
"""The same for generation 1."""


def tiny_checkpoint(
    folder: Path,
    *,
    layout: TinyLayout = "hub",
    seed: int = 0,
    vocabulary: bool = True,
    dtype: torch.dtype = torch.float32,
    tied: bool = False,
    prefix: int = 0,
    projection: bool = False,
    only_prefix: bool = False,
    files: Literal["safetensors", "bin"] = "safetensors",
) -> Path:
    """Write a tiny model into ``folder``, which is made if need be, and return it.

    :param layout: ``"hub"`` is Hugging Face's `glm`; the others are original layouts.
    :param vocabulary: also write a byte-level `tokenizer.json` with everybody's special tokens.
    :param dtype: what the weights are stored in.
    :param tied: the head is the embedding; generation 1 always ties.
    :param prefix: entries of a P-Tuning prefix, of original layouts; 0: none.
    :param only_prefix: store the prefix without its base, as P-Tuning scripts do.
    """
    folder.mkdir(parents=True, exist_ok=True)
    config = tiny_config(layout, tied=tied, prefix=prefix, projection=projection)
    tensors = random_tensors(config, seed)
    if layout == "hub" and isinstance(config, GlmConfig):
        tensors = _renamed(tensors, config)
    if only_prefix:
        tensors = {key: each for key, each in tensors.items() if "prefix_encoder" in key}
    _save(
        {
            # Prefixes were trained and stored in full precision over half-precision models.
            key: each.to(torch.float32 if "prefix_encoder" in key else dtype).contiguous()
            for key, each in tensors.items()
        },
        folder,
        files,
    )
    raw = raw_config(config, layout) | {"torch_dtype": str(dtype).removeprefix("torch.")}
    (folder / "config.json").write_text(json.dumps(raw, indent=2), encoding="utf-8")
    if vocabulary:
        (folder / "tokenizer.json").write_text(_byte_tokenizer(), encoding="utf-8")
    return folder


def _save(tensors: dict[str, Tensor], folder: Path, files: str) -> None:
    if files == "bin":
        torch.save(tensors, folder / "pytorch_model.bin")
        return
    from safetensors.torch import save_file

    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})


def tiny_config(
    layout: TinyLayout = "hub", *, tied: bool = False, prefix: int = 0, projection: bool = False
) -> GlmConfig | ChatGlmConfig:
    """Return the shape of a tiny model."""
    first = layout == "chatglm"
    config: GlmConfig | ChatGlmConfig = TINY_FIRST if first else replace(TINY, tied_head=tied)
    if not prefix:
        return config
    shape = (config.layers, config.kv_heads, config.head_dim, config.hidden_size)
    return replace(config, prefix=PrefixConfig(prefix, *shape, projection, narrow=first))


def random_tensors(config: ModelConfig, seed: int = 0) -> dict[str, Tensor]:
    """Return random weights under our own names.

    The special tokens score 0 everywhere, so that greedy answers run to their limit.
    """
    generator = torch.Generator().manual_seed(seed)
    with torch.device("meta"):
        model = _built(config)
    tensors: dict[str, Tensor] = {}
    for stem, module in model.named_modules():
        for leaf, meta in module.named_parameters(recurse=False):
            noise = torch.randn(meta.shape, generator=generator)
            tensors[f"{stem}.{leaf}"] = _scaled(noise, module, leaf)
    if isinstance(config, ChatGlmConfig):
        _raise_voice(tensors)
    silent = tensors[f"{model.EMBEDDING if config.tied_head else model.HEAD}.weight"]
    silent[[each for each in IDS.values() if each < config.vocab_size]] = 0
    if config.tied_head:
        del tensors[f"{model.HEAD}.weight"]
    return tensors


def _raise_voice(tensors: dict[str, Tensor]) -> None:
    """Sharpen attention and strengthen what layers add, or generation 1's residual drowns them.

    The model would only repeat its last token, and no test could tell right from wrong.
    """
    louder = {"query_key_value.weight": 3, "attention.dense.weight": 8, "dense_4h_to_h.weight": 8}
    for key in tensors:
        for ending, factor in louder.items():
            if key.endswith(ending):
                tensors[key] = tensors[key] * factor


def _built(config: ModelConfig) -> CausalModel:
    if isinstance(config, ChatGlmConfig):
        return ChatGlm(config)
    if isinstance(config, GlmConfig):
        return Glm(config)
    raise TypeError(f"no architecture has a {type(config).__name__}")


def _scaled(noise: Tensor, module: nn.Module, leaf: str) -> Tensor:
    if isinstance(module, (RmsNorm, nn.LayerNorm)):
        return 1 + 0.1 * noise if leaf == "weight" else 0.1 * noise
    if leaf == "bias":
        return 0.2 * noise
    if isinstance(module, nn.Embedding):
        return noise
    return noise * float(1.5 / noise.shape[1] ** 0.5)


def _renamed(tensors: dict[str, Tensor], config: GlmConfig) -> dict[str, Tensor]:
    """Cut fused tensors up and name them as Hugging Face does."""
    q, kv = config.heads * config.head_dim, config.kv_heads * config.head_dim
    renamed: dict[str, Tensor] = {}
    for key, tensor in tensors.items():
        stem, _, leaf = key.rpartition(".")
        stems = HUB.sources(stem)
        parts = tensor.split([q, kv, kv]) if len(stems) == 3 else [tensor]  # type: ignore[no-untyped-call]
        renamed.update({f"{s}.{leaf}": part for s, part in zip(stems, parts, strict=True)})
    return renamed


def raw_config(config: GlmConfig | ChatGlmConfig, layout: TinyLayout) -> dict[str, Any]:
    """Return the config.json of a tiny model."""
    raw = _RAW[layout](config)
    if config.prefix is not None:
        raw |= {
            "pre_seq_len": config.prefix.length,
            "prefix_projection": config.prefix.projection,
        }
    return raw


def _hub_config(config: GlmConfig) -> dict[str, Any]:
    return {
        "model_type": "glm",
        "architectures": ["GlmForCausalLM"],
        "vocab_size": config.vocab_size,
        "hidden_size": config.hidden_size,
        "intermediate_size": config.ffn_size,
        "num_hidden_layers": config.layers,
        "num_attention_heads": config.heads,
        "num_key_value_heads": config.kv_heads,
        "head_dim": config.head_dim,
        "hidden_act": "silu",
        "attention_bias": config.qkv_bias,
        "max_position_embeddings": config.context_length,
        "rms_norm_eps": config.norm_eps,
        "rope_parameters": {
            "rope_type": "default",
            "rope_theta": config.rope_theta,
            "partial_rotary_factor": config.rotary_dim / config.head_dim,
        },
        "tie_word_embeddings": config.tied_head,
        "eos_token_id": 2,
        "pad_token_id": 0,
    }


def _first_config(config: ChatGlmConfig) -> dict[str, Any]:
    return {
        "model_type": "chatglm",
        "_name_or_path": "THUDM/chatglm-6b",
        "architectures": ["ChatGLMModel"],
        "vocab_size": config.vocab_size,
        "hidden_size": config.hidden_size,
        "inner_hidden_size": config.ffn_size,
        "num_layers": config.layers,
        "num_attention_heads": config.heads,
        "max_sequence_length": config.context_length,
        "layernorm_epsilon": config.norm_eps,
        "position_encoding_2d": config.planar,
        "bos_token_id": config.bos,
        "eos_token_id": IDS["<eop>"],
        "mask_token_id": config.mask,
        "gmask_token_id": config.gmask,
        "pad_token_id": 0,
    }


def _original_config(config: GlmConfig, name: str, **more: object) -> dict[str, Any]:
    return {
        "model_type": "chatglm",
        "_name_or_path": f"THUDM/{name}",
        "architectures": ["ChatGLMModel"],
        "padded_vocab_size": config.vocab_size,
        "hidden_size": config.hidden_size,
        "ffn_hidden_size": config.ffn_size,
        "num_layers": config.layers,
        "num_attention_heads": config.heads,
        "kv_channels": config.head_dim,
        "multi_query_attention": True,
        "multi_query_group_num": config.kv_heads,
        "seq_length": config.context_length,
        "layernorm_epsilon": config.norm_eps,
        "add_qkv_bias": config.qkv_bias,
        "add_bias_linear": False,
        "rmsnorm": True,
        "post_layer_norm": True,
        "tie_word_embeddings": config.tied_head,
        "eos_token_id": 2,
        "pad_token_id": 0,
        **more,
    }


_RAW: dict[TinyLayout, Callable[[Any], dict[str, Any]]] = {
    "hub": _hub_config,
    "chatglm": _first_config,
    "chatglm2": lambda config: _original_config(config, "chatglm2-6b"),
    "chatglm3": lambda config: _original_config(config, "chatglm3-6b"),
    "glm4-9b": lambda config: _original_config(config, "glm-4-9b-chat", rope_ratio=500),
}


def _byte_tokenizer() -> str:
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

    names = [*SPECIAL, *sorted(pre_tokenizers.ByteLevel.alphabet()), *GLM_SPECIAL]
    tokenizer = Tokenizer(models.BPE({name: at for at, name in enumerate(names)}, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([AddedToken(each, special=True) for each in IDS])
    return tokenizer.to_str()
