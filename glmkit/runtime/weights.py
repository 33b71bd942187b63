"""Reading weight files: memory-mapped, safe formats only, one clear error for each fault."""

from __future__ import annotations

import errno
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

__all__ = [
    "TensorInfo",
    "Weights",
    "check_claims",
    "explained",
    "has_weights",
    "quiet",
    "read_json",
    "weight_files",
]

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
        with explained(file):
            inner: Any = safe_open(str(file), framework="pt")
            self._inner, self._keys = inner, list(inner.keys())

    def keys(self) -> list[str]:
        return self._keys

    def info(self, name: str) -> TensorInfo:
        with explained(self._file):
            part = self._inner.get_slice(name)
            shape, stored = tuple(part.get_shape()), part.get_dtype()
        dtype = _DTYPES.get(stored)
        if dtype is None:
            return TensorInfo(shape, stored, 0)
        size = torch.Size(shape).numel() * dtype.itemsize
        return TensorInfo(shape, str(dtype).removeprefix("torch."), size)

    def get_tensor(self, name: str) -> Tensor:
        with explained(self._file):
            return cast(Tensor, self._inner.get_tensor(name))


class _Unpickled:
    """A `.bin` file, read without running any code in it."""

    def __init__(self, file: Path) -> None:
        found, self.mapped = _load_bin(file)
        if not isinstance(found, dict) or not all(map(_is_plain, found.items())):
            raise CheckpointError(f"{file} holds something else than a table of tensors")
        self._tensors: dict[str, Tensor] = found
        check_claims(file, sum(each.size for each in map(self.info, found)))

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


@contextmanager
def quiet() -> Iterator[None]:
    """Keep to ourselves that torch finds a file uncommon: it is read, or refused with a reason."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


@quiet()
def _load_bin(file: Path) -> tuple[object, bool]:
    """Return what a file holds, and whether it is mapped."""
    with explained(file):
        try:
            return torch.load(file, map_location="cpu", weights_only=True, mmap=True), True
        except RuntimeError as error:
            if "mmap" not in str(error):  # files from before torch 1.6 cannot be mapped
                raise
            return torch.load(file, map_location="cpu", weights_only=True), False


_FAULTS = (
    SafetensorError,
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
"""What torch and safetensors raise on damaged files, depending on where the damage is."""


@contextmanager
def explained(file: Path) -> Iterator[None]:
    """Turn what the libraries raise over a weight file into one line, without their own words.

    :raises CheckpointError: says what is wrong with the file.
    """
    try:
        yield
    except pickle.UnpicklingError as error:
        raise CheckpointError(_odd(file) or f"{file} {_OBJECTS}") from error
    except _FAULTS as error:
        raise CheckpointError(_odd(file) or _damaged(file, error)) from error


_OBJECTS = (
    "is a pickle of whole Python objects (torch.save(model) writes such files) or is damaged; "
    "glmkit runs no code from files: get it as .safetensors, or save the tensors alone"
)

_STARTS = (b"PK", b"\x80")
"""Of a zip archive, and of a pickle from before torch 1.6."""


def _odd(file: Path) -> str:
    """Return what to say of a file that cannot be weights by its first bytes, else nothing."""
    if file.suffix == ".safetensors":
        return ""
    try:
        with file.open("rb") as stream:
            start = stream.read(2)
    except OSError:
        return ""
    if not start or any(each.startswith(start) or start.startswith(each) for each in _STARTS):
        return ""
    return f"{file} is no weight file: it is neither a zip archive nor a pickle, as torch writes"


def _damaged(file: Path, error: BaseException) -> str:
    if isinstance(error, OSError) and error.errno not in (None, errno.EINVAL):
        return f"{file} cannot be read ({error.strerror})"
    try:
        size = f"{file.stat().st_size:,} bytes on disk"
    except OSError:
        size = "it has vanished from the disk"
    return f"{file} is damaged or cut short ({size}); fetch it again"


def check_claims(file: Path, claimed: int) -> None:
    """Refuse tensors that together are far larger than the file they come from.

    :param claimed: bytes.
    :raises CheckpointError: if they are.
    """
    size = file.stat().st_size
    if claimed > _SHARED * size:
        raise CheckpointError(
            f"{file} is damaged: its tensors claim {claimed:,} bytes, the file has {size:,}"
        )
