"""The files of an adapter: which they are, and the tensors in them. Nothing in a file is run."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import Tensor

from ..errors import CheckpointError
from .weights import check_claims, explained, quiet, read_json

FILES = ("adapter_model.safetensors", "adapter_model.bin")
CONFIG = "adapter_config.json"
PREFIX = "transformer.prefix_encoder."
_PREFIX_FILES = ("pytorch_model.bin", "model.safetensors")


def find_adapter(path: Path) -> Path:
    """Return the file that holds the tensors.

    :raises CheckpointError: if there is none, or several.
    """
    if path.is_file():
        return path
    if not path.is_dir():
        raise CheckpointError(f"adapter {path}: no such file or folder")
    names: tuple[str, ...] = FILES
    if (path / "config.json").is_file() and read_json(path / "config.json").get("pre_seq_len"):
        names += _PREFIX_FILES
    for name in names:
        if (path / name).is_file():
            return path / name
    raw = sorted(path.glob("*.pt"))
    if len(raw) == 1:
        return raw[0]
    hint = f"; name one of {', '.join(each.name for each in raw)}" if raw else ""
    expected = ", ".join([*FILES, "one *.pt, or a P-Tuning prefix (pre_seq_len in config.json)"])
    raise CheckpointError(f"{path} holds no adapter; expected {expected}{hint}")


def read_tensors(file: Path) -> dict[str, Tensor]:
    """Read a table of tensors; nothing in the file is run.

    :raises CheckpointError: if the file is damaged or holds anything else.
    """
    with explained(file), quiet():
        if file.suffix == ".safetensors":
            return load_file(file)
        found = torch.load(file, map_location="cpu", weights_only=True)
    if not isinstance(found, dict) or not found:
        raise CheckpointError(f"{file} holds a {type(found).__name__}, not a table of tensors")
    tensors = {_name(file, key, value): value.detach() for key, value in found.items()}
    check_claims(file, sum(each.numel() * each.dtype.itemsize for each in tensors.values()))
    return tensors


def _name(file: Path, key: object, value: object) -> str:
    plain = isinstance(value, Tensor) and value.layout == torch.strided
    if not isinstance(key, str) or not plain:
        kind = type(value).__name__
        raise CheckpointError(f"{file} holds a {kind} under {key!r}; an adapter is tensors only")
    return key


def check_numbers(file: Path, tensors: Mapping[str, Tensor]) -> None:
    for key, tensor in tensors.items():
        if not tensor.is_floating_point():
            raise CheckpointError(f"{file}: {key} holds {tensor.dtype}; expected floating point")
        if not bool(torch.isfinite(tensor).all()):
            raise CheckpointError(f"{file}: {key} holds values that are no numbers (NaN, infinite)")
