"""Tiny checkpoints with random weights: every layout, a vocabulary, a few kilobytes.

For tests and for plugin authors who want the real machinery without a real model. Equal seeds
give equal files.
"""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn

from .glm import Glm, GlmConfig, RmsNorm
from .layouts import HUB

TinyLayout = Literal["hub", "chatglm2", "chatglm3", "glm4-9b"]

SPECIAL = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")
"""The special tokens of the tiny vocabulary, ids 0, 1 and 2; then one token for each byte."""

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


def tiny_checkpoint(
    folder: Path,
    *,
    layout: TinyLayout = "hub",
    seed: int = 0,
    vocabulary: bool = True,
    dtype: torch.dtype = torch.float32,
    tied: bool = False,
) -> Path:
    """Write a tiny model into ``folder``, which is made if need be, and return it.

    :param layout: ``"hub"`` is Hugging Face's `glm`; the others are original layouts.
    :param vocabulary: also write a byte-level `tokenizer.json` with the chatml tokens.
    :param dtype: what the weights are stored in.
    :param tied: the head is the embedding.
    """
    from safetensors.torch import save_file

    folder.mkdir(parents=True, exist_ok=True)
    config = replace(TINY, tied_head=tied)
    tensors = random_tensors(config, seed)
    if layout == "hub":
        tensors = _renamed(tensors, config)
    stored = {key: value.to(dtype).contiguous() for key, value in tensors.items()}
    save_file(stored, folder / "model.safetensors", metadata={"format": "pt"})
    raw = _hub_config(config) if layout == "hub" else _original_config(config, layout)
    raw["torch_dtype"] = str(dtype).removeprefix("torch.")
    (folder / "config.json").write_text(json.dumps(raw, indent=2), encoding="utf-8")
    if vocabulary:
        (folder / "tokenizer.json").write_text(_byte_tokenizer(), encoding="utf-8")
    return folder


def random_tensors(config: GlmConfig, seed: int = 0) -> dict[str, Tensor]:
    """Return random weights under our own names.

    The special tokens score 0 everywhere, so that greedy answers run to their limit.
    """
    generator = torch.Generator().manual_seed(seed)
    with torch.device("meta"):
        model = Glm(config)
    tensors: dict[str, Tensor] = {}
    for stem, module in model.named_modules():
        for leaf, meta in module.named_parameters(recurse=False):
            noise = torch.randn(meta.shape, generator=generator)
            tensors[f"{stem}.{leaf}"] = _scaled(noise, module, leaf)
    head = "embedding.word_embeddings" if config.tied_head else "output_layer"
    tensors[f"transformer.{head}.weight"][: len(SPECIAL)] = 0
    if config.tied_head:
        del tensors["transformer.output_layer.weight"]
    return tensors


def _scaled(noise: Tensor, module: nn.Module, leaf: str) -> Tensor:
    if isinstance(module, RmsNorm):
        return 1 + 0.1 * noise
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


_NAMES = {
    "chatglm2": "THUDM/chatglm2-6b",
    "chatglm3": "THUDM/chatglm3-6b",
    "glm4-9b": "THUDM/glm-4-9b-chat",
}


def _original_config(config: GlmConfig, layout: str) -> dict[str, Any]:
    raw: dict[str, Any] = {
        "model_type": "chatglm",
        "_name_or_path": _NAMES[layout],
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
    }
    return raw | ({"rope_ratio": 500} if layout == "glm4-9b" else {})


def _byte_tokenizer() -> str:
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

    names = [*SPECIAL, *sorted(pre_tokenizers.ByteLevel.alphabet())]
    tokenizer = Tokenizer(models.BPE({name: at for at, name in enumerate(names)}, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([AddedToken(each, special=True) for each in SPECIAL])
    return tokenizer.to_str()
