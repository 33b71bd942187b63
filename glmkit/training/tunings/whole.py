"""Training the weights themselves, all or some; saved as a checkpoint in the base's layout."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor, nn

from ...errors import CheckpointError, UsageError
from ...models.causal import CausalModel
from ...models.files import read_json
from ...runtime.linears import Int4Linear, Int8Linear, QuantizedEmbedding, StoredEmbedding
from ...runtime.loading import DTYPES, load_local
from ...runtime.merging import SHARD_BYTES, copy_small_files, skeleton
from ...runtime.shards import Piece, Stored, write_weights
from ...runtime.weights import Weights
from ..config import TrainConfig
from ..optimizers import Group
from ..tuning import together

_QUANTISED = ("quantization_config", "quantization_bit")


@dataclass(frozen=True)
class Part:
    """Some layers, and what is beside them."""

    layers: int
    """The last ones, so many; below 0: the first ones."""
    modules: Sequence[str] = ("all",)
    """Names within a layer."""
    extra: Sequence[str] = ()
    """``embedding``, ``norm``, ``head``, or the end of a module's name outside layers."""

    def __call__(self, model: CausalModel) -> Iterator[str]:
        """Yield the names of the parameters that it means.

        :raises UsageError: if it names nothing.
        """
        names = everything(model)
        layers = _layers(model.config.layers, self.layers)
        known = {part for name in names for part in _inside(name)}
        for each in self.modules:
            if each not in known | {"all"}:
                raise UsageError(
                    f"modules: {each!r} is no part of a layer; all, or some of: "
                    f"{', '.join(sorted(known))}"
                )
        found = [name for name in names if _within(name, layers, self.modules)]
        for each in self.extra:
            found += _beside(model, names, each)
        yield from dict.fromkeys(found)


def everything(model: CausalModel) -> list[str]:
    """Return the names of all parameters, quantised ones too; a tied head is the token table."""
    with torch.device("meta"):
        names = [name for name, _ in type(model)(model.config).named_parameters()]
    if model.config.tied_head:
        names.remove(f"{model.HEAD}.weight")
    return names


Chosen = Callable[[CausalModel], Iterable[str]]
"""Returns the names of the parameters that are trained."""


class WholeTuning:
    """The weights of a model.

    :param base: the folder of the model.
    :param chosen: which of them are trained: a :class:`Part`, or any function of the model.
    """

    kind = "full"
    lossless = False
    """What is written is rounded to the base's precision."""
    forecast: Mapping[str, Any] = MappingProxyType({})

    def __init__(
        self, base: Path, chosen: Chosen = everything, *, family: str | None = None
    ) -> None:
        self.base, self.chosen, self.family = base, chosen, family
        self.whole = chosen is everything
        """Nothing is frozen."""

    def dress(self, model: CausalModel) -> None:
        """Make the chosen weights trainable, as copies of what was mapped from disk.

        :raises UsageError: if what is chosen is quantised.
        """
        model.requires_grad_(False)
        names = set(self.chosen(model))
        for stem, module in list(model.named_modules()):
            own = [leaf for leaf, _ in module.named_parameters(recurse=False)]
            wanted = [leaf for leaf in own if f"{stem}.{leaf}" in names]
            if isinstance(module, (Int4Linear, Int8Linear, QuantizedEmbedding)):
                if f"{stem}.weight" in names:
                    raise UsageError(_ROUNDED)
                continue
            for leaf in wanted:
                dtype = model.like.dtype if isinstance(module, StoredEmbedding) else None
                value = getattr(module, leaf).detach().to(dtype=dtype, copy=True)
                setattr(module, leaf, nn.Parameter(value))
        if model.config.tied_head and f"{model.EMBEDDING}.weight" in names:
            table = model.get_submodule(model.EMBEDDING).weight
            setattr(model.get_submodule(model.HEAD), "weight", table)  # noqa: B010

    def groups(self, model: CausalModel, config: TrainConfig) -> list[Group]:
        """Return all that is trained as one group."""
        return together(model)

    def save(self, state: dict[str, Tensor], folder: Path) -> None:
        """Write a checkpoint: the base with what was trained, in its layout and precision."""
        copy_small_files(self.base, folder)
        # What a conversion put aside, and the card, are of other weights.
        shutil.rmtree(folder / "original", ignore_errors=True)
        (folder / "README.md").unlink(missing_ok=True)
        raw = read_json(self.base / "config.json")
        if any(raw.get(each) for each in _QUANTISED):
            for each in _QUANTISED:
                raw.pop(each, None)
            text = json.dumps(raw, indent=2, ensure_ascii=False)
            (folder / "config.json").write_text(text + "\n", encoding="utf-8")
        source = _Source(self.base, state, self.family)
        for _ in write_weights(folder, source.stored(), source, shard_bytes=SHARD_BYTES):
            pass

    def load(self, folder: Path) -> dict[str, Tensor]:
        """Refuse: other weights to begin with are another model.

        :raises CheckpointError: always; checkpoints of a run keep exact values beside.
        """
        if (folder / "adapter_config.json").is_file():
            raise CheckpointError(
                f"{folder} is an adapter, and here all weights learn: put it into its model "
                f"(glmkit adapters merge MODEL {folder} -o MERGED), then train --model MERGED"
            )
        raise CheckpointError(f"{folder} is a whole model: train it further with --model {folder}")


_ROUNDED = (
    "quantised weights cannot be trained themselves: give --dtype float32 or bfloat16, which "
    "expands them while loading, or take the recipe qlora"
)


def _layers(count: int, wanted: int) -> set[int]:
    if abs(wanted) > count:
        raise UsageError(f"layers must be {count} at most for this model, got {wanted}")
    return set(range(count - wanted, count) if wanted >= 0 else range(-wanted))


def _within(name: str, layers: set[int], modules: Sequence[str]) -> bool:
    number = re.search(r"\.layers\.(\d+)\.", name)
    if number is None or int(number[1]) not in layers:
        return False
    return "all" in modules or not set(modules).isdisjoint(_inside(name))


def _inside(name: str) -> list[str]:
    """Return the names of the modules that a parameter of a layer is in."""
    found = re.search(r"\.layers\.\d+\.(.+)\.[^.]+$", name)
    return found[1].split(".") if found else []


def _beside(model: CausalModel, names: list[str], extra: str) -> list[str]:
    norm = next(stem for stem, each in model.named_modules() if each is model.norm)
    known = {"embedding": model.EMBEDDING, "head": model.HEAD, "norm": norm}
    if extra == "head" and model.config.tied_head:
        known["head"] = model.EMBEDDING
    stem = known.get(extra, extra)
    found = [name for name in names if name.rpartition(".")[0].endswith(stem)]
    if not found:
        raise UsageError(f"extra_modules: {extra!r} is none of {', '.join(sorted(known))}")
    return found


class _Source:
    """What a checkpoint is written from: trained tensors, and the base's for the rest.

    :param state: by the names of our modules.
    """

    def __init__(self, base: Path, state: dict[str, Tensor], family: str | None) -> None:
        self._base, self._state, self._family = base, state, family
        self._layout, self._model, _ = skeleton(base, family)
        self._weights = Weights(base)
        raw = read_json(base / "config.json")
        self._default = DTYPES.get(str(raw.get("torch_dtype", raw.get("dtype"))), torch.float16)
        self._dtypes: dict[str, torch.dtype] = {}

    def stored(self) -> list[Stored]:
        """Return what is written, by the names of the base's layout."""
        found: list[Stored] = []
        for stem, module in self._model.named_modules():
            if self._model.config.tied_head and stem == self._model.HEAD:
                continue
            for leaf, meta in module.named_parameters(recurse=False):
                found += self._cut(stem, leaf, tuple(meta.shape))
        taken = {each.key for each in found}
        for key in self._weights:
            if key not in taken and self._layout.ignores(key):
                tensor = self._weights[key]
                found.append(Stored(key, tuple(tensor.shape), tensor.dtype, (Piece(key),)))
        return found

    def _cut(self, stem: str, leaf: str, shape: tuple[int, ...]) -> Iterator[Stored]:
        """Yield one of our tensors as its layout has it: whole, or its rows in three parts."""
        name, stems = f"{stem}.{leaf}", self._layout.sources(stem)
        rows, start = self._parts(shape[0], len(stems)), 0
        dtype = self._dtypes[name] = self._dtype(name, f"{stems[0]}.{leaf}")
        for each, count in zip(stems, rows, strict=True):
            piece = Piece(name, start, start + count)
            yield Stored(f"{each}.{leaf}", (count, *shape[1:]), dtype, (piece,))
            start += count

    def _parts(self, rows: int, count: int) -> list[int]:
        config = self._model.config
        keys = config.kv_heads * config.head_dim
        return [rows] if count == 1 else [rows - 2 * keys, keys, keys]

    def _dtype(self, name: str, key: str) -> torch.dtype:
        """Return the precision of the base; single where that cannot hold the numbers."""
        plain = key in self._weights and self._weights[key].is_floating_point()
        dtype = self._weights[key].dtype if plain else self._default
        value = self._state.get(name)
        if value is not None and dtype == torch.float16 and float(value.abs().max()) > _HALF:
            return torch.float32
        return dtype

    def __call__(self, name: str) -> Tensor:
        """Return one of our tensors, or one on disk that nobody needs."""
        if name in self._state:
            return self._state[name].to(self._dtypes[name])
        if name not in self._dtypes:
            return self._weights[name]
        return self._of_base(name).to(self._dtypes[name])

    def _of_base(self, name: str) -> Tensor:
        stem, _, leaf = name.rpartition(".")
        parts = [self._weights[f"{each}.{leaf}"] for each in self._layout.sources(stem)]
        if all(each.is_floating_point() for each in parts):
            return torch.cat(parts) if len(parts) > 1 else parts[0]
        return self._expanded[name]

    @cached_property
    def _expanded(self) -> dict[str, Tensor]:
        """The weights of a quantised base."""
        local = load_local(self._base, device="cpu", dtype="float32", family=self._family)
        return dict(local.model.named_parameters())


_HALF = torch.finfo(torch.float16).max
