"""What a folder holds: generation, sizes, files, vocabulary and the memory it takes, by headers."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, Literal

import torch
from torch import nn

from ..models.causal import CausalModel, ModelConfig
from ..models.files import is_file, read_json
from ..models.layouts import OWN, Layout, Recognised, located, read_model
from ..models.prefix import PrefixConfig
from ..models.shapes import doubts, shown
from ..models.tokenizers import Tokenizer
from . import abroad
from .adapters import read_adapter
from .footprint import Memory, footprint
from .headers import (
    PREFIX,
    QUANTISED,
    VOCABULARIES,
    check_folder,
    check_headers,
    check_prefix,
    is_prefix,
    leaves,
)
from .official import bits_of
from .weights import Weights, has_weights

_ADAPTER = "adapter_config.json"
_KINDS = {
    "IceText": "ice_text.model, SentencePiece of ChatGLM-6B",
    "Pieces": "tokenizer.model, SentencePiece",
    "Ranks": "tokenizer.model, tiktoken ranks",
    "Described": "tokenizer.json",
}


@dataclass(frozen=True)
class Sizes:
    """The architecture in numbers."""

    layers: int
    hidden_size: int
    ffn_size: int | None
    """None where the settings of a model of another kind leave it open."""
    heads: int
    kv_heads: int
    head_dim: int
    vocab_size: int
    """Rows of the token table, spare ones included."""
    tied_head: bool


@dataclass(frozen=True)
class WeightFiles:
    """The files that hold the tensors."""

    format: Literal["safetensors", "bin"]
    files: tuple[str, ...]
    size: int
    """Bytes."""
    numbers: Mapping[str, int]
    """How many numbers of each dtype they hold."""


@dataclass(frozen=True)
class Vocabulary:
    """What turns text into ids."""

    kind: str
    size: int | None
    """Ids, special ones included; None where only the model's own library can tell."""


@dataclass(frozen=True)
class Prefix:
    """A P-Tuning prefix."""

    length: int
    projection: bool
    parameters: int


@dataclass(frozen=True)
class Quantised:
    """How matrices lie quantised on disk."""

    bits: int
    format: Literal["official", "glmkit"]
    linears: tuple[str, ...]
    """Which linears of a block, and the head, by the last part of their names."""
    embeddings: bool


@dataclass(frozen=True)
class AdapterFiles:
    """A LoRA adapter."""

    kind: str
    layout: str
    ranks: tuple[int, ...]
    modules: tuple[str, ...]
    parameters: int
    base: str | None


@dataclass(frozen=True)
class Description:
    """What a folder holds. What does not apply is None."""

    path: str
    kind: Literal["model", "prefix", "adapter", "vocabulary", "other"]
    family: str | None = None
    family_because: str | None = None
    family_certain: bool = True
    layout: str | None = None
    sizes: Sizes | None = None
    parameters: int | None = None
    """Of the model; a prefix is not counted."""
    context_length: int | None = None
    weights: WeightFiles | None = None
    vocabulary: Vocabulary | None = None
    prefix: Prefix | None = None
    quantised: Quantised | None = None
    adapter: AdapterFiles | None = None
    memory: Memory | None = None
    notes: tuple[str, ...] = field(default=())
    architecture: str | None = None
    """The ``model_type`` of a model of another kind."""
    engine: str | None = None
    """What runs a model of another kind; None: nothing does, the notes say why."""


def describe(folder: Path, family: str | None = None) -> Description:
    """Say what a folder holds, reading headers and settings only.

    :param family: settles what the files leave open, see :mod:`glmkit.models.families`.
    :raises CheckpointError: if it holds nothing that glmkit knows, or damaged files.
    :raises UsageError: if ``family`` cannot be.
    """
    folder = Path(folder)
    if is_file(folder / _ADAPTER) and not has_weights(folder):
        return _adapter(folder)
    bare = not is_file(folder / "config.json") and not has_weights(folder)
    if bare and any(is_file(folder / each) for each in VOCABULARIES):
        found = _vocabulary(folder, family, None)
        return Description(str(folder), "vocabulary", family=family, vocabulary=found)
    if bare:
        check_folder(folder)
    raw = read_json(folder / "config.json")
    kind = raw.get("model_type")
    if isinstance(kind, str) and kind not in OWN:
        return _other(folder, raw)
    return _model(folder, read_model(folder, family))


def _adapter(folder: Path) -> Description:
    read = read_adapter(folder)
    found = AdapterFiles(
        read.kind,
        read.layout,
        tuple(sorted({each.rank for each in read.parts.values()})),
        tuple(sorted({stem.rpartition(".")[2] for stem in read.parts})),
        read.parameters,
        read.base_name,
    )
    return Description(str(folder), "adapter", adapter=found)


def _other(folder: Path, raw: dict[str, Any]) -> Description:
    """Describe a model of another kind, as far as its settings and headers tell."""
    weights = _weight_files(Weights(folder)) if has_weights(folder) else None
    sizes = abroad.sizes(raw)
    numbers = abroad.parameters(weights.numbers) if weights else None
    engine, notes = abroad.runs(folder, raw)
    return Description(
        str(folder),
        "other",
        architecture=shown(raw["model_type"]).strip("'"),
        engine=engine,
        sizes=Sizes(**sizes) if sizes else None,
        parameters=numbers,
        context_length=abroad.context_length(raw),
        weights=weights,
        vocabulary=_other_vocabulary(folder),
        memory=abroad.memory(sizes, numbers) if sizes and numbers else None,
        notes=notes,
    )


def _other_vocabulary(folder: Path) -> Vocabulary | None:
    found = abroad.vocabulary(folder)
    return Vocabulary(*found) if found else None


def _model(folder: Path, read: Recognised) -> Description:
    raw, layout, found, config = read.raw, read.layout, read.finding, read.config
    with torch.device("meta"):
        model = layout.model(config)
    weights = Weights(folder)
    alone = is_prefix(weights)
    if alone:
        check_prefix(weights, model)
    else:
        check_headers(weights, layout, model)
    return Description(
        str(folder),
        "prefix" if alone else "model",
        found.family,
        found.why,
        found.certain,
        layout.name,
        _sizes(config),
        parameters=_count(model, lambda stem: not stem.startswith(PREFIX)),
        context_length=config.context_length,
        weights=_weight_files(weights),
        vocabulary=_vocabulary(folder, found.family, config.vocab_size),
        prefix=_prefix(model),
        quantised=_quantised(weights, model, layout, _bits(folder, raw)),
        memory=footprint(model, _table(weights, model, layout)),
        notes=_notes(folder, found.certain, raw, alone),
    )


def _sizes(config: ModelConfig) -> Sizes:
    return Sizes(**{each.name: getattr(config, each.name) for each in fields(Sizes)})


def _parameters(model: CausalModel) -> Iterable[tuple[str, nn.Module, int]]:
    """Yield stem, module and how many numbers it holds; a tied head is the token table."""
    for stem, module in leaves(model):
        if stem != model.HEAD or not model.config.tied_head:
            yield stem, module, sum(each.numel() for each in module.parameters(recurse=False))


def _count(model: CausalModel, wanted: Any) -> int:  # noqa: ANN401
    return sum(count for stem, _, count in _parameters(model) if wanted(stem))


def _weight_files(weights: Weights) -> WeightFiles:
    numbers: Counter[str] = Counter()
    for key in weights:
        info = weights.info(key)
        numbers[info.dtype] += torch.Size(info.shape).numel()
    safe = weights.files[0].suffix == ".safetensors"
    return WeightFiles(
        "safetensors" if safe else "bin",
        tuple(each.name for each in weights.files),
        sum(each.stat().st_size for each in weights.files),
        dict(numbers.most_common()),
    )


def _vocabulary(folder: Path, family: str | None, vocab_size: int | None) -> Vocabulary | None:
    found = Tokenizer.open(folder, family=family, vocab_size=vocab_size)
    if found is None:
        return None
    kind = type(found).__name__
    return Vocabulary(_KINDS.get(kind, kind), found.size)


def _prefix(model: CausalModel) -> Prefix | None:
    config: PrefixConfig | None = getattr(model.config, "prefix", None)
    if config is None:
        return None
    count = _count(model, lambda stem: stem.startswith(PREFIX))
    return Prefix(config.length, config.projection, count)


def _bits(folder: Path, raw: Mapping[str, Any]) -> int | None:
    with located(folder):
        return bits_of(raw)


def _quantised(
    weights: Weights, model: CausalModel, layout: Layout, bits_said: int | None
) -> Quantised | None:
    scaled = [
        (stem, layout.sources(stem)[0])
        for stem, _ in leaves(model)
        if f"{layout.sources(stem)[0]}.weight_scale" in weights
    ]
    if not scaled:
        return None
    first = scaled[-1][1]
    official = len(weights.info(f"{first}.weight_scale").shape) == 1
    own = 4 if weights.info(f"{first}.weight").dtype == "uint8" else 8
    stems = {stem.rpartition(".")[2] for stem, _ in scaled if stem != model.EMBEDDING}
    return Quantised(
        bits_said or own,
        "official" if official else "glmkit",
        tuple(sorted(stems)),
        any(stem == model.EMBEDDING for stem, _ in scaled),
    )


def _table(weights: Weights, model: CausalModel, layout: Layout) -> int:
    """Return the bytes of the token table on disk; in half precision where it is not there."""
    stem = layout.sources(model.EMBEDDING)[0]
    found = [f"{stem}.{leaf}" for leaf in ("weight", *QUANTISED) if f"{stem}.{leaf}" in weights]
    if not found:
        return 2 * model.config.vocab_size * model.config.hidden_size
    return sum(weights.info(key).size for key in found)


def _notes(folder: Path, certain: bool, raw: Mapping[str, Any], alone: bool) -> tuple[str, ...]:
    notes = list(doubts(raw))
    if not certain:
        notes.append("the family is a guess: say it with --family if it is another")
    if alone:
        notes.append("a prefix alone does not run: load its model with this folder as the adapter")
    if not certain and type(raw.get("rope_ratio")) in (int, float) and raw["rope_ratio"] != 1:
        notes.append("rope_ratio divides positions in chatglm2, and multiplies the base elsewhere")
    if is_file(folder / _ADAPTER):
        notes.append("there is an adapter beside the weights; it is not loaded with them")
    return tuple(notes)
