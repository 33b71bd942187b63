"""Reading weight files: memory-mapped, safe formats only, one clear error for each fault."""

from __future__ import annotations

import pickle
import struct
import warnings
import zipfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, cast

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from ..errors import CheckpointError
from ..models.files import is_file, read_json, refuse_pointer
from .pages import release

__all__ = ["TensorInfo", "Weights", "has_weights", "read_json", "weight_files"]

_SOURCES = (
    "model.safetensors",
    "model.safetensors.index.json",
    "pytorch_model.bin",
    "pytorch_model.bin.index.json",
)
"""Where weights are, tried in order."""

_DTYPES = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "I8": torch.int8,
    "U8": torch.uint8,
}
"""What weights are made of, by safetensors' names; int8 and uint8 hold quantised ones."""

_SHARED = 3
"""A pickled file may name a storage several times (a tied head); its tensors have no more than so
many times its bytes together."""


@dataclass(frozen=True)
class TensorInfo:
    """What a header says of a tensor."""

    shape: tuple[int, ...]
    dtype: str
    """As torch calls it: ``"float16"``."""
    size: int
    """Bytes."""


class Shard(Protocol):
    """One file of weights."""

    mapped: bool
    """Tensors take memory only while they are looked at."""

    def keys(self) -> list[str]:
        """Name the tensors in the file."""
        ...

    def info(self, name: str) -> TensorInfo:
        """Describe one tensor without reading it."""
        ...

    def get_tensor(self, name: str) -> Tensor:
        """Map one tensor."""
        ...


class Weights(Mapping[str, Tensor]):
    """The tensors of a folder by name; each is mapped from disk when asked for.

    :raises CheckpointError: if the files are missing, damaged or do not fit together.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.files, table = weight_files(folder)
        self._home: dict[str, Shard] = {}
        for file in self.files:
            self._add(file, _open_shard(file))
        for key, name in table.items():
            if key not in self._home:
                raise CheckpointError(
                    f"{folder / name} lacks the tensor {key!r}, which its index promises; fetch "
                    "the model again"
                )

    def _add(self, file: Path, shard: Shard) -> None:
        for key in shard.keys():
            if key in self._home:
                raise CheckpointError(
                    f"{file} holds {key!r} a second time; the folder mixes the files of different "
                    "models"
                )
            self._home[key] = shard

    def __getitem__(self, name: str) -> Tensor:
        shard = self._home[name]
        dtype = shard.info(name).dtype
        if dtype not in _TAKEN:
            raise CheckpointError(
                f"{self.folder}: {name} holds {dtype}; glmkit reads {', '.join(sorted(_TAKEN))}"
            )
        return shard.get_tensor(name)

    def release(self, name: str) -> None:
        """Give back the memory that looking at a tensor took; it can be looked at again."""
        shard = self._home[name]
        if shard.mapped:
            release(shard.get_tensor(name))

    def info(self, name: str) -> TensorInfo:
        """Describe a tensor by its header alone."""
        return self._home[name].info(name)

    def __contains__(self, name: object) -> bool:
        return name in self._home  # the inherited one would map the tensor to find out

    def __iter__(self) -> Iterator[str]:
        return iter(self._home)

    def __len__(self) -> int:
        return len(self._home)


def weight_files(folder: Path) -> tuple[list[Path], dict[str, str]]:
    """Return the folder's weight files, and the index: tensor -> file, empty for a single file.

    :raises CheckpointError: if there are none, one is missing, or the index is damaged.
    """
    for name in _SOURCES:
        if not is_file(folder / name):
            continue
        if not name.endswith(".json"):
            return [folder / name], {}
        table = _index(folder / name)
        return [folder / each for each in sorted(set(table.values()))], table
    raise CheckpointError(f"{folder} holds no weights; expected one of {', '.join(_SOURCES)}")


def has_weights(folder: Path) -> bool:
    """Tell whether the folder holds weights of a model, or an index of such."""
    return any(is_file(folder / name) for name in _SOURCES)


def _index(file: Path) -> dict[str, str]:
    table = read_json(file).get("weight_map")
    if not table or not isinstance(table, dict) or set(map(type, table.values())) != {str}:
        raise CheckpointError(f"{file} has no weight_map; fetch it again")
    names = sorted(set(table.values()))
    outside = [each for each in names if Path(each).name != each or "\\" in each or "\0" in each]
    if outside:
        raise CheckpointError(f"{file} points out of the folder: {outside[0]!r}")
    suffix = "".join(file.name.removesuffix(".index.json").rpartition(".")[1:])
    other = [each for each in names if not each.endswith(suffix)]
    if other:
        raise CheckpointError(f"{file} names {other[0]!r}, which is no {suffix} file")
    missing = [each for each in names if not is_file(file.parent / each)]
    if missing:
        said = ", ".join(missing[:4]) + (", ..." if len(missing) > 4 else "")
        raise CheckpointError(
            f"{file.parent} lacks {len(missing)} of {len(names)} weight files: {said}; "
            "fetch the model again"
        )
    return table


def _open_shard(file: Path) -> Shard:
    refuse_pointer(file)
    return _Mapped(file) if file.suffix == ".safetensors" else _Unpickled(file)


_TAKEN = {str(each).removeprefix("torch.") for each in _DTYPES.values()}


class _Mapped:
    """A `.safetensors` file; the library checks that its header covers the file exactly."""

    mapped = True

    def __init__(self, file: Path) -> None:
        self._file = file
        try:
            inner: Any = safe_open(str(file), framework="pt")
            self._inner, self._keys = inner, list(inner.keys())
        except (SafetensorError, OSError, ValueError) as error:
            raise _damaged(file, error) from error

    def keys(self) -> list[str]:
        return self._keys

    def info(self, name: str) -> TensorInfo:
        try:
            part = self._inner.get_slice(name)
            shape, stored = tuple(part.get_shape()), part.get_dtype()
        except (SafetensorError, ValueError) as error:
            raise _damaged(self._file, error) from error
        dtype = _DTYPES.get(stored)
        if dtype is None:
            return TensorInfo(shape, stored, 0)
        size = torch.Size(shape).numel() * dtype.itemsize
        return TensorInfo(shape, str(dtype).removeprefix("torch."), size)

    def get_tensor(self, name: str) -> Tensor:
        try:
            return cast(Tensor, self._inner.get_tensor(name))
        except (SafetensorError, OSError, ValueError, RuntimeError) as error:
            raise _damaged(self._file, error) from error


class _Unpickled:
    """A `.bin` file, read without running any code in it."""

    def __init__(self, file: Path) -> None:
        found, self.mapped = _load_bin(file)
        if not isinstance(found, dict) or not all(map(_is_plain, found.items())):
            raise CheckpointError(f"{file} holds something else than a table of tensors")
        self._tensors: dict[str, Tensor] = found
        claimed = sum(each.size for each in map(self.info, found))
        if claimed > _SHARED * file.stat().st_size:
            raise CheckpointError(
                f"{file} is damaged: its tensors claim {claimed:,} bytes, the file has "
                f"{file.stat().st_size:,}"
            )

    def keys(self) -> list[str]:
        return list(self._tensors)

    def info(self, name: str) -> TensorInfo:
        tensor = self._tensors[name]
        size = tensor.numel() * tensor.dtype.itemsize
        return TensorInfo(tuple(tensor.shape), str(tensor.dtype).removeprefix("torch."), size)

    def get_tensor(self, name: str) -> Tensor:
        return self._tensors[name].detach()


def _is_plain(entry: tuple[object, object]) -> bool:
    """Tell whether a name and a value are those of an ordinary tensor that is really there."""
    name, value = entry
    return (
        isinstance(name, str)
        and isinstance(value, Tensor)
        and value.layout == torch.strided
        and value.device.type == "cpu"
        and not value.is_quantized
    )


_FAULTS = (
    RuntimeError,
    EOFError,
    OSError,
    ValueError,
    LookupError,
    TypeError,
    AttributeError,
    ArithmeticError,
    AssertionError,
    ImportError,
    MemoryError,
    struct.error,
    zipfile.BadZipFile,
)
"""What torch raises on damaged files, depending on where the damage is."""


@contextmanager
def _quiet() -> Iterator[None]:
    """Keep to ourselves that torch finds a file uncommon: it is read, or refused with a reason."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


@_quiet()
def _load_bin(file: Path) -> tuple[object, bool]:
    """Return what a file holds, and whether it is mapped."""
    try:
        try:
            return torch.load(file, map_location="cpu", weights_only=True, mmap=True), True
        except RuntimeError as error:
            if "mmap" not in str(error):  # files from before torch 1.6 cannot be mapped
                raise
            return torch.load(file, map_location="cpu", weights_only=True), False
    except pickle.UnpicklingError as error:
        raise CheckpointError(
            f"{file} holds more than tensors, or is damaged; glmkit runs no code from weight "
            "files: get the model as .safetensors"
        ) from error
    except _FAULTS as error:
        raise _damaged(file, error) from error


def _damaged(file: Path, error: BaseException) -> CheckpointError:
    reason = next(iter(str(error).splitlines()), "") or type(error).__name__
    return CheckpointError(f"{file} is damaged or cut short ({reason[:200]}); fetch it again")
