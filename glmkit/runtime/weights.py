"""Reading weight files: memory-mapped, safe formats only, one clear error for each fault."""

from __future__ import annotations

import json
import pickle
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Protocol, cast

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from ..errors import CheckpointError

_SINGLE = ("model.safetensors", "pytorch_model.bin")
_INDEXES = ("model.safetensors.index.json", "pytorch_model.bin.index.json")


class Shard(Protocol):
    """One file of weights."""

    def keys(self) -> list[str]:
        """Name the tensors in the file."""
        ...

    def get_tensor(self, name: str) -> Tensor:
        """Map one tensor."""
        ...


class Weights(Mapping[str, Tensor]):
    """The tensors of a folder by name; each is mapped from disk when asked for."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._shards = {name: _open_shard(folder / name) for name in _shard_names(folder)}
        self._home = {key: shard for shard in self._shards.values() for key in shard.keys()}

    def __getitem__(self, name: str) -> Tensor:
        return self._home[name].get_tensor(name)

    def __contains__(self, name: object) -> bool:
        return name in self._home  # the inherited one would map the tensor to find out

    def __iter__(self) -> Iterator[str]:
        return iter(self._home)

    def __len__(self) -> int:
        return len(self._home)


def read_json(file: Path) -> dict[str, Any]:
    """Return the object in a JSON file.

    :raises CheckpointError: if the file is absent, is no JSON or holds something else.
    """
    if not file.is_file():
        raise CheckpointError(f"{file.parent} holds no {file.name}: it is not a model folder")
    try:
        value = json.loads(file.read_text(encoding="utf-8"))
    except (ValueError, OSError, RecursionError) as error:
        raise CheckpointError(f"{file} is damaged ({error}); fetch it again") from error
    if not isinstance(value, dict):
        raise CheckpointError(f"{file} holds a {type(value).__name__} instead of an object")
    return value


def _shard_names(folder: Path) -> list[str]:
    for name in _SINGLE:
        if (folder / name).is_file():
            return [name]
    for name in _INDEXES:
        if (folder / name).is_file():
            return _indexed(folder, name)
    raise CheckpointError(
        f"{folder} holds no weights; expected one of {', '.join(_SINGLE + _INDEXES)}"
    )


def _indexed(folder: Path, index: str) -> list[str]:
    table = read_json(folder / index).get("weight_map")
    if not isinstance(table, dict) or not all(isinstance(each, str) for each in table.values()):
        raise CheckpointError(f"{folder / index} has no weight_map; fetch it again")
    names = sorted(set(table.values()))
    outside = [each for each in names if Path(each).name != each]
    if outside:
        raise CheckpointError(f"{folder / index} points out of the folder: {outside[0]!r}")
    missing = [each for each in names if not (folder / each).is_file()]
    if missing:
        raise CheckpointError(
            f"{folder} lacks {len(missing)} of {len(names)} weight files: {', '.join(missing)}; "
            "fetch the model again"
        )
    return names


def _open_shard(file: Path) -> Shard:
    if file.suffix == ".safetensors":
        return _open_safetensors(file)
    return _Unpickled(file)


def _open_safetensors(file: Path) -> Shard:
    try:
        return cast(Shard, safe_open(str(file), framework="pt"))
    except (SafetensorError, OSError) as error:
        raise CheckpointError(
            f"{file} is damaged or cut short ({error}); fetch it again"
        ) from error


class _Unpickled:
    """A `.bin` file, read without running any code in it."""

    def __init__(self, file: Path) -> None:
        found = _load_bin(file)
        if not isinstance(found, dict) or not all(isinstance(e, Tensor) for e in found.values()):
            raise CheckpointError(f"{file} holds something else than a table of tensors")
        self._tensors: dict[str, Tensor] = found

    def keys(self) -> list[str]:
        return list(self._tensors)

    def get_tensor(self, name: str) -> Tensor:
        return self._tensors[name]


def _load_bin(file: Path) -> object:
    try:
        try:
            return torch.load(file, map_location="cpu", weights_only=True, mmap=True)
        except RuntimeError as error:
            if "mmap" not in str(error):  # files from before torch 1.6 cannot be mapped
                raise
            return torch.load(file, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise CheckpointError(
            f"{file} holds more than tensors, or is damaged; glmkit runs no code from weight "
            "files: get the model as .safetensors"
        ) from error
    except (RuntimeError, EOFError, OSError, ValueError, KeyError) as error:
        reason = next(iter(str(error).splitlines()), type(error).__name__)
        raise CheckpointError(
            f"{file} is damaged or cut short ({reason}); fetch it again"
        ) from error
