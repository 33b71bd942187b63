"""Writing weights as safetensors, piece by piece, in memory that does not grow with the model."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import BinaryIO

import torch
from torch import Tensor

from ..errors import CheckpointError
from ..types import Progress

_NAMES = {
    torch.float64: "F64",
    torch.float32: "F32",
    torch.float16: "F16",
    torch.bfloat16: "BF16",
}
_BLOCK = 1 << 26
"""Bytes written between two reports."""


@dataclass(frozen=True)
class Piece:
    """Rows of a tensor that exists."""

    key: str
    start: int = 0
    stop: int | None = None

    def of(self, tensor: Tensor) -> Tensor:
        """Cut the rows out."""
        return tensor[self.start : self.stop]


@dataclass(frozen=True)
class Stored:
    """A tensor to be written: pieces below each other, bit for bit."""

    key: str
    shape: tuple[int, ...]
    dtype: torch.dtype
    pieces: tuple[Piece, ...]

    @property
    def size(self) -> int:
        """Bytes."""
        return torch.Size(self.shape).numel() * self.dtype.itemsize


Reader = Callable[[str], Tensor]
"""Maps a tensor of the source by its key."""


def write_weights(
    folder: Path, tensors: Sequence[Stored], read: Reader, *, shard_bytes: int
) -> Iterator[Progress]:
    """Write tensors as `model.safetensors`, or as shards with an index where one is too small.

    :param shard_bytes: most bytes of tensors in one file; a larger tensor has a file of its own.
    :raises CheckpointError: if a tensor has a dtype that is none of a model's.
    """
    shards = planned(tensors, shard_bytes)
    names = _shard_names(len(shards))
    total = sum(each.size for each in tensors)
    done = 0
    for name, shard in zip(names, shards, strict=True):
        for event in write_file(folder / name, shard, read):
            yield replace(event, done=done + event.done, total=total)
        done += sum(each.size for each in shard)
    if len(shards) > 1:
        places = {
            each.key: name for name, shard in zip(names, shards, strict=True) for each in shard
        }
        index = {"metadata": {"total_size": total}, "weight_map": places}
        text = json.dumps(index, indent=2, sort_keys=True)
        (folder / "model.safetensors.index.json").write_text(text + "\n", encoding="utf-8")


def planned(tensors: Sequence[Stored], shard_bytes: int) -> list[list[Stored]]:
    """Share tensors out, in their order, over files of at most ``shard_bytes`` each."""
    shards: list[list[Stored]] = [[]]
    size = 0
    for each in tensors:
        if shards[-1] and size + each.size > shard_bytes:
            shards.append([])
            size = 0
        shards[-1].append(each)
        size += each.size
    return shards


def _shard_names(count: int) -> list[str]:
    if count == 1:
        return ["model.safetensors"]
    return [f"model-{at:05d}-of-{count:05d}.safetensors" for at in range(1, count + 1)]


def write_file(file: Path, tensors: Sequence[Stored], read: Reader) -> Iterator[Progress]:
    """Write tensors as one safetensors file.

    :raises CheckpointError: if a tensor has a dtype that is none of a model's.
    """
    total = sum(each.size for each in tensors)
    done = 0
    with file.open("wb") as out:
        out.write(_header(tensors))
        for piece in (piece for each in tensors for piece in each.pieces):
            for count in _copy(piece.of(read(piece.key)), out):
                done += count
                yield Progress(f"writing {file.name}", done, total, "bytes")
        out.flush()
        os.fsync(out.fileno())


def _header(tensors: Sequence[Stored]) -> bytes:
    """Return the table of contents, preceded by its length and padded to whole words."""
    table: dict[str, object] = {"__metadata__": {"format": "pt"}}
    at = 0
    for each in tensors:
        if each.dtype not in _NAMES:
            raise CheckpointError(f"{each.key} is stored as {each.dtype}, which is no model weight")
        offsets = [at, at + each.size]
        shape = list(each.shape)
        table[each.key] = {"dtype": _NAMES[each.dtype], "shape": shape, "data_offsets": offsets}
        at += each.size
    text = json.dumps(table, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text


def _copy(tensor: Tensor, out: BinaryIO) -> Iterator[int]:
    raw = memoryview(tensor.contiguous().flatten().view(torch.uint8).numpy())  # type: ignore[arg-type]
    for start in range(0, len(raw), _BLOCK):
        yield out.write(raw[start : start + _BLOCK])
