"""Between the original layout of GLM checkpoints and Hugging Face's: the same numbers, renamed.

The result is built in a hidden folder beside its place and moved there when it is whole, so that
what looks complete is complete.
"""

from __future__ import annotations

from collections.abc import Generator, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from ..errors import CheckpointError, UsageError
from ..models.causal import ModelConfig
from ..models.files import read_json, read_json_if_there
from ..models.glm import GlmConfig
from ..models.layouts import Layout, family_of, recognise
from ..models.translation import hub_config, original_config, pairs
from ..types import Progress
from . import vocabulary
from .folders import replacing, require_room
from .shards import Piece, Stored, write_file, write_weights
from .vocabulary import KEPT, Model, copy, write_json
from .weights import Weights

Target = Literal["hf", "original"]

_UNUSED = "unused.safetensors"
"""In :data:`KEPT`: tensors of the original that nothing computes with."""

SHARD_BYTES = 4 << 30
_REMAP_AFTER = 512 << 20
"""Bytes read before the files are mapped anew, which gives their pages back."""

Work = Generator[Progress, None, list[str]]


@dataclass(frozen=True)
class Converted:
    """What a conversion made."""

    path: Path
    tensors: int
    size: int
    """Bytes of weights."""
    notes: tuple[str, ...] = ()
    """What a person should know of it, such as what could not be carried over."""


@dataclass(frozen=True)
class _Plan:
    """What is read and what is written."""

    folder: Path
    raw: dict[str, Any]
    family: str
    config: GlmConfig
    stored: tuple[Stored, ...]
    unused: tuple[Stored, ...]
    """Tensors that nothing computes with."""

    @property
    def size(self) -> int:
        """Bytes of weights."""
        return sum(each.size for each in self.stored)

    @property
    def model(self) -> Model:
        """What the vocabulary needs to know."""
        return Model(self.family, self.config.vocab_size, self.config.context_length)

    @property
    def dtype(self) -> str:
        """What the weights are stored in, as torch names it."""
        return str(self.stored[0].dtype).removeprefix("torch.")


def convert(
    path: Path,
    out: Path,
    *,
    to: Target,
    family: str | None = None,
    force: bool = False,
    shard_bytes: int = SHARD_BYTES,
) -> Generator[Progress, None, Converted]:
    """Write the checkpoint in ``path`` to ``out`` in the other layout, bit for bit.

    :param to: ``"hf"`` makes a `GlmForCausalLM` folder, ``"original"`` a ChatGLM one.
    :param family: which family the model is of; None: as the folder says.
    :param force: replace what ``out`` holds.
    :param shard_bytes: most bytes of weights in one file.
    :raises UsageError: if ``out`` is not empty, or one of the folders lies in the other.
    :raises CheckpointError: if the checkpoint is damaged or the other layout cannot hold it; then
        ``out`` is as before.
    """
    source, target = Path(path), Path(out)
    plan = _planned(source, to, family)
    with replacing(target, source, force=force) as folder:
        require_room(folder, plan.size)
        write = _write_hub if to == "hf" else _write_original
        notes = yield from write(plan, folder, shard_bytes)
    return Converted(target, len(plan.stored), plan.size, tuple(notes))


def _planned(folder: Path, to: Target, family: str | None) -> _Plan:
    """Read the small files of a checkpoint and the headers of the large ones.

    :raises CheckpointError: if it cannot be converted.
    """
    if (folder / "adapter_config.json").is_file():
        raise CheckpointError(
            f"{folder} is an adapter; merge it into its base (glmkit adapters merge) and convert "
            "the result"
        )
    raw = read_json(folder / "config.json")
    if raw.get("quantization_bit") or raw.get("quantization_config"):
        raise CheckpointError(_quantised(folder))
    layout = recognise(raw)
    if bool(layout.keys) == (to == "hf"):
        raise UsageError(f"{folder} needs no conversion: it is in that layout, {layout.name}")
    family = family_of(folder, raw, family)
    config = _expressible(layout.shape(raw, family))
    there = _Inventory(folder)
    stored = tuple(_to_hub(config, there) if to == "hf" else _to_original(config, there))
    return _Plan(folder, raw, family, config, stored, tuple(there.left(layout)))


def _quantised(folder: Path) -> str:
    return (
        f"{folder} holds quantised weights, and neither layout says them the other's way; convert "
        "the unquantised checkpoint (glmkit quantises while loading: quantize='int4')"
    )


def _expressible(config: ModelConfig) -> GlmConfig:
    if not isinstance(config, GlmConfig):
        raise CheckpointError(
            "generation 1 (ChatGLM-6B) has no counterpart in transformers, so there is nothing to "
            "convert it to; in programs that use transformers, import glmkit.hf and call "
            "glmkit.hf.register(): its Auto classes then load this folder as it is"
        )
    if config.prefix is not None:
        raise CheckpointError(
            "a P-Tuning prefix (pre_seq_len) has no place in GlmForCausalLM; glmkit runs this "
            "folder as it is, or convert the base checkpoint without the prefix"
        )
    if config.sandwich:
        raise CheckpointError(
            "GLM-4-0414 has norms that no original layout knows; it exists in Hugging Face's only"
        )
    return config


def _to_hub(config: GlmConfig, there: _Inventory) -> Iterator[Stored]:
    for key, shape, parts in pairs(config):
        if config.tied_head and key not in there:
            continue
        dtype = there.take(key, shape)
        start = 0
        for name, rows in parts:
            piece = Piece(key, start, start + rows)
            yield Stored(name, (rows, *shape[1:]), dtype, (piece,))
            start += rows


def _to_original(config: GlmConfig, there: _Inventory) -> Iterator[Stored]:
    for key, shape, parts in pairs(config):
        if config.tied_head and parts[0][0] not in there:
            continue
        dtypes = {there.take(name, (rows, *shape[1:])) for name, rows in parts}
        if len(dtypes) > 1:
            raise CheckpointError(f"the parts of {key} differ in dtype; save them in one")
        yield Stored(key, shape, dtypes.pop(), tuple(Piece(name) for name, _ in parts))


class _Inventory:
    """The tensors of a folder: what is there, and what is needed of it."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._weights = Weights(folder)
        self._taken: set[str] = set()

    def __contains__(self, key: object) -> bool:
        return key in self._weights

    def take(self, key: str, shape: tuple[int, ...]) -> torch.dtype:
        """Return the dtype of a tensor that must be there.

        :raises CheckpointError: if it is not, has another shape or holds no plain numbers.
        """
        if key not in self._weights:
            raise CheckpointError(
                f"{self._folder} lacks the tensor {key}; the weights are incomplete or belong to "
                "another model than config.json"
            )
        self._taken.add(key)
        tensor = self._weights[key]
        if not tensor.is_floating_point():
            raise CheckpointError(_quantised(self._folder))
        if tuple(tensor.shape) != shape:
            raise CheckpointError(
                f"{self._folder}: {key} has shape {list(tensor.shape)}, config.json says "
                f"{list(shape)}; the files belong to different models"
            )
        return tensor.dtype

    def left(self, layout: Layout) -> Iterator[Stored]:
        """Yield the tensors that nothing computes with.

        :raises CheckpointError: if others were not taken.
        """
        left = [key for key in self._weights if key not in self._taken]
        strange = [key for key in left if not layout.ignores(key)]
        if strange:
            raise CheckpointError(
                f"{self._folder} holds {len(strange)} tensors that its config.json has no place "
                f"for, such as {strange[0]}; the files belong to different models"
            )
        return _whole(self._weights, left)


def _whole(tensors: Mapping[str, Tensor], keys: Iterable[str]) -> Iterator[Stored]:
    for key in keys:
        yield Stored(key, tuple(tensors[key].shape), tensors[key].dtype, (Piece(key),))


class _Reader:
    """Maps tensors of a folder; now and then maps its files anew, to give their pages back."""

    def __init__(self, folder: Path, more: Mapping[str, Tensor] | None = None) -> None:
        self._folder = folder
        self._more = more or {}
        self._weights = Weights(folder)
        self._read = 0

    def __call__(self, key: str) -> Tensor:
        """Return the tensor ``key``; it stays on disk until it is looked at."""
        if key in self._more:
            return self._more[key]
        if self._read > _REMAP_AFTER:
            self._weights, self._read = Weights(self._folder), 0
        tensor = self._weights[key]
        self._read += tensor.nbytes
        return tensor


def _write_hub(plan: _Plan, folder: Path, shard_bytes: int) -> Work:
    """Write a `GlmForCausalLM` folder, and put aside what it has no place for."""
    reader = _Reader(plan.folder)
    yield from write_weights(folder, plan.stored, reader, shard_bytes=shard_bytes)
    _write_config(folder, hub_config(plan.config, plan.raw, plan.dtype), plan)
    kept = folder / KEPT
    kept.mkdir()
    copy(plan.folder, kept, _SETTINGS)
    if plan.unused:
        yield from write_file(kept / _UNUSED, plan.unused, reader)
    copy(plan.folder, folder, ("generation_config.json", *_LICENCES))
    write_json(
        folder / "glmkit.json",
        read_json_if_there(plan.folder / "glmkit.json") | {"family": plan.family},
    )
    return vocabulary.to_hub(plan.folder, folder, plan.model)


def _write_original(plan: _Plan, folder: Path, shard_bytes: int) -> Work:
    """Write a ChatGLM folder, with what an earlier conversion put aside."""
    kept = plan.folder / KEPT
    unused = _load_unused(kept)
    stored = (*plan.stored, *_whole(unused, unused))
    yield from write_weights(folder, stored, _Reader(plan.folder, unused), shard_bytes=shard_bytes)
    known = kept if kept.is_dir() else plan.folder
    copy(known, folder, _SETTINGS)
    copy(plan.folder, folder, _LICENCES)
    raw = read_json_if_there(kept / "config.json")
    if not _says(raw, plan):
        made = original_config(plan.config, plan.raw, plan.family, plan.dtype)
        _write_config(folder, {**raw, **made}, plan)
    return vocabulary.to_original(plan.folder, folder, plan.model)


_SETTINGS = ("config.json", "generation_config.json", "glmkit.json")
_LICENCES = ("LICENSE", "LICENSE.txt", "MODEL_LICENSE", "NOTICE")


def _load_unused(kept: Path) -> dict[str, Tensor]:
    from safetensors.torch import load_file

    return load_file(kept / _UNUSED) if (kept / _UNUSED).is_file() else {}


def _says(raw: Mapping[str, Any], plan: _Plan) -> bool:
    """Tell whether the config.json that was put aside still describes the model."""
    names = ("eos_token_id", "pad_token_id")
    if not raw or any(raw.get(name) != plan.raw.get(name) for name in names):
        return False
    return raw.get("torch_dtype") == plan.dtype and _read(raw, plan.family) == plan.config


def _read(raw: Mapping[str, Any], family: str) -> ModelConfig:
    layout = recognise(raw)
    return layout.shape(raw, family if family in layout.families else None)


def _write_config(folder: Path, made: dict[str, Any], plan: _Plan) -> None:
    """Write config.json.

    :raises CheckpointError: if it cannot say what the model is.
    """
    if _read(made, plan.family) != plan.config:
        raise CheckpointError(
            "the other layout's config.json cannot describe this model exactly; glmkit runs it "
            "as it is"
        )
    write_json(folder / "config.json", made)
