"""Adapters for tiny models, made up and written in any layout."""

import json

import torch
from safetensors.torch import save_file

from glmkit.runtime.adapters import Adapter, LowRank
from glmkit.runtime.fitting import linear_shapes

FUSED = "query_key_value"


def lora(model, *, rank=4, scale=2.0, seed=0, kinds=(FUSED,), name="tiny"):
    """Return a random adapter for the modules of ``model`` whose names end in one of ``kinds``."""
    generator = torch.Generator().manual_seed(seed)
    parts = {}
    for stem, (rows, columns) in linear_shapes(model.model).items():
        if stem.endswith(tuple(kinds)):
            a = torch.randn(rank, columns, generator=generator) / columns**0.5
            b = torch.randn(rows, rank, generator=generator) / rank**0.5
            parts[stem] = LowRank(a, b, scale)
    return Adapter(name, "lora", "made up", parts)


def tensors_of(adapter, owner=""):
    """Return what a file of the adapter holds."""
    return {
        f"base_model.model.{stem}.lora_{side}{owner}.weight": tensor.contiguous()
        for stem, part in adapter.parts.items()
        for side, tensor in (("A", part.a), ("B", part.b))
    }


def config_of(adapter, **more):
    """Return an adapter_config.json as peft wrote it in 2023."""
    part = next(iter(adapter.parts.values()))
    return {
        "peft_type": "LORA",
        "r": part.rank,
        "lora_alpha": part.scale * part.rank,
        "target_modules": sorted({stem.rpartition(".")[2] for stem in adapter.parts}),
        "bias": "none",
        "base_model_name_or_path": "some/base",
        **more,
    }


def write(folder, tensors, config=None, *, file="adapter_model.bin"):
    """Write an adapter's files; a config of None leaves that file out."""
    folder.mkdir(parents=True, exist_ok=True)
    if file.endswith(".safetensors"):
        save_file(tensors, folder / file)
    else:
        torch.save(tensors, folder / file)
    if config is not None:
        (folder / "adapter_config.json").write_text(json.dumps(config), encoding="utf-8")
    return folder


def written(folder, adapter, **more):
    """Write an adapter as peft did in 2023."""
    return write(folder, tensors_of(adapter), config_of(adapter, **more))
