"""Writing checkpoints with adapters added to their matrices."""

from __future__ import annotations

import gc
import shutil
from collections.abc import Generator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from ..errors import CheckpointError, UsageError
from ..models.causal import CausalModel
from ..models.layouts import Layout, family_of, recognise
from ..types import Progress
from .adapters import Adapter, LowRank
from .fingerprint import Fingerprint
from .fitting import check_base, fit_lora
from .folders import replacing, require_room
from .loading import load_local
from .probing import apart, furthest_off, rounded, scores
from .shards import Piece, Stored, write_weights
from .weights import Weights, read_json

Weighted = tuple[Adapter, float]
SHARD_BYTES = 4 << 30

_CLOSE = 0.25
"""Rounding to the stored precision moves the scores by less than this share of what the adapters
move them by; a wrong scale, name or order by more than all of it."""

_LARGEST_SMALL_FILE = 256 << 20
_WEIGHTS = (".safetensors", ".bin", ".pt", ".pth", ".gguf", ".index.json", "-manifest.json")


@dataclass(frozen=True)
class Merged:
    """What a merge made."""

    path: Path
    tensors: int
    """How many matrices changed."""
    size: int
    """Bytes of weights."""
    effect: float
    """Largest difference of a score between the base and base + adapters, on a probe."""
    error: float
    """The same between base + adapters and the merged model: rounding."""


def merge(
    base: Path,
    adapters: Sequence[Weighted],
    out: Path,
    *,
    name: str | None = None,
    family: str | None = None,
    any_base: bool = False,
    force: bool = False,
) -> Generator[Progress, None, Merged]:
    """Write the checkpoint in ``base`` with adapters added to its matrices; same layout and dtype.

    The sums are taken in float32, one matrix at a time. What was written is read again and compared
    with base + adapters, every number of it; then it is loaded, and its scores on a probe are
    compared, before ``out`` appears.

    :param adapters: each with its weight; 1 is as it was trained.
    :param name: what the base is called in messages; None: its folder's name.
    :param family: what the base is, where its files do not say.
    :param any_base: take adapters that were trained on another model of this shape too.
    :param force: replace what ``out`` holds.
    :raises CheckpointError: if an adapter does not fit, the base is quantised, or the result is
        not base + adapters; then ``out`` is as before.
    :raises UsageError: if there is nothing to merge, or ``out`` is not empty.
    """
    plan = _planned(base, adapters, family)
    if not any_base and any(adapter.fingerprint for adapter, _ in adapters):
        own = Fingerprint.of(base, name or base.name)
        for adapter, _ in adapters:
            check_base(adapter, own)
    with replacing(out, base, force=force) as folder:
        require_room(folder, plan.size)
        reader = _Reader(plan)
        yield from write_weights(folder, plan.stored, reader, shard_bytes=SHARD_BYTES)
        if not reader.changed:
            raise CheckpointError(
                f"merging changed no weight of {base.name}: the adapters' changes are 0, or below "
                "what its precision can tell apart"
            )
        yield from _verified(plan, folder)
        copy_small_files(base, folder)
        effect, error = yield from _compared(plan, adapters, folder)
    return Merged(out, reader.changed, plan.size, effect, error)


@dataclass(frozen=True)
class _Plan:
    folder: Path
    family: str
    stored: tuple[Stored, ...]
    changes: Mapping[str, _Change]
    """By tensor on disk: what is added to it, float32."""

    @property
    def size(self) -> int:
        return sum(each.size for each in self.stored)


def _planned(base: Path, adapters: Sequence[Weighted], family: str | None) -> _Plan:
    """Check that all fits, from headers alone."""
    if not any(weight for _, weight in adapters):
        raise UsageError("nothing to merge: give an adapter with a weight that is not 0")
    layout, model, family = skeleton(base, family)
    weights = Weights(base)
    _refuse_quantised(base, weights)
    fitted = [(_fitted(adapter, model), weight) for adapter, weight in adapters]
    stored = [
        Stored(key, tuple(weights[key].shape), weights[key].dtype, (Piece(key),)) for key in weights
    ]
    return _Plan(base, family, tuple(stored), _changes(layout, fitted, weights))


def skeleton(folder: Path, family: str | None = None) -> tuple[Layout, CausalModel, str]:
    """Return a checkpoint's layout, its model without weights, and its family.

    :raises CheckpointError: if the folder is no model that glmkit runs.
    """
    raw = read_json(folder / "config.json")
    layout = recognise(raw)
    family = family_of(folder, raw, family)
    with torch.device("meta"):
        return layout, layout.model(layout.shape(raw, family)), family


def _refuse_quantised(base: Path, weights: Weights) -> None:
    for key in weights:
        if key.endswith(".weight_scale") or not weights[key].is_floating_point():
            raise CheckpointError(
                f"{base} is quantised ({key}), and rounding again would lose the adapters' small "
                "changes: merge into the unquantised checkpoint, then load that with "
                "quantize='int4'; or put the adapters on without merging (--adapter)"
            )


def _fitted(adapter: Adapter, model: CausalModel) -> dict[str, LowRank]:
    if adapter.kind != "lora":
        raise UsageError(
            f"adapter {adapter.name!r} is a P-Tuning prefix, which is no change of weights; put "
            "it on while loading (--adapter)"
        )
    fitted = fit_lora(adapter, model)
    if model.config.tied_head and model.HEAD in fitted:
        raise CheckpointError(
            f"adapter {adapter.name!r} changes the head, which this model shares with its token "
            "table; it cannot be merged, only put on (--adapter)"
        )
    return fitted


def _changes(
    layout: Layout,
    fitted: Sequence[tuple[Mapping[str, LowRank], float]],
    weights: Weights,
) -> dict[str, _Change]:
    """Return what is added to each tensor on disk; a fused matrix may lie there in parts."""
    changes: dict[str, _Change] = {}
    for stem in sorted({stem for parts, _ in fitted for stem in parts}):
        mine = [(parts[stem], weight) for parts, weight in fitted if stem in parts]
        start = 0
        for source in layout.sources(stem):
            key = f"{source}.weight"
            if key not in weights:
                raise CheckpointError(f"{weights.folder} lacks the tensor {key}; fetch it again")
            stop = start + weights[key].shape[0]
            changes[key] = _Change(mine, slice(start, stop))
            start = stop
    return changes


@dataclass(frozen=True)
class _Change:
    """Rows of the weighted sum of several low-rank changes."""

    parts: Sequence[tuple[LowRank, float]]
    rows: slice

    def over(self, plain: Tensor) -> tuple[Tensor, list[tuple[LowRank, float]]]:
        """Return the plain rows, longer or shorter where DoRA says so, and what is added to them.

        :param plain: these rows of the matrix, (rows, in).
        """
        base, parts = plain, []
        for part, weight in self.parts:
            part, gain = part.rows(self.rows).over(plain)
            parts.append((part, weight))
            if gain is not None:
                base = base.float() + (weight * gain)[:, None] * plain.float()
        return base, parts

    def __call__(self, plain: Tensor) -> Tensor:
        """Return these rows with all changes, float32 (rows, in)."""
        base, parts = self.over(plain)
        deltas = [LowRank(p.a, p.b, p.scale * weight).delta() for p, weight in parts]
        return base.float() + (torch.stack(deltas).sum(0) if len(deltas) > 1 else deltas[0])


class _Reader:
    """Reads tensors with their changes; gives the memory of each back when the next is read."""

    def __init__(self, plan: _Plan) -> None:
        self.plan = plan
        self.changed = 0
        self._weights = Weights(plan.folder)
        self._last: str | None = None

    def __call__(self, key: str) -> Tensor:
        """Return the tensor ``key``, merged, in its stored dtype."""
        if self._last is not None:
            self._weights.release(self._last)
        self._last = key
        tensor = self._weights[key]
        change = self.plan.changes.get(key)
        if change is None:
            return tensor
        merged = rounded(change(tensor), tensor.dtype, key)
        self.changed += not torch.equal(merged, tensor)
        return merged


def _verified(plan: _Plan, folder: Path) -> Generator[Progress, None, None]:
    """Compare what was written with base and adapters, number by number.

    :raises CheckpointError: if a tensor is not what it should be.
    """
    plain, merged = Weights(plan.folder), Weights(folder)
    done = 0
    for each in plan.stored:
        yield Progress("comparing the weights", done, plan.size, "bytes")
        change, key = plan.changes.get(each.key), each.key
        if change is None:
            off = 0.0 if torch.equal(merged[key], plain[key]) else float("inf")
        else:
            off = furthest_off(merged[key], *change.over(plain[key]))
        if not off <= 0:
            raise CheckpointError(
                f"the merged model is not base + adapter: {key} is off by {off:.3g} beyond "
                "rounding; nothing was written"
            )
        done += each.size
        for weights in (plain, merged):
            weights.release(key)


_OF_A_RUN = ("run.json", "trainer_log.jsonl", "trainer_state.json", "training_loss.png")
"""Records of a training, which tell of these weights and no others."""


def copy_small_files(base: Path, folder: Path) -> None:
    """Copy configuration, vocabulary and licence: all that is no weights."""
    for file in sorted(base.iterdir()):
        if file.is_dir() and file.name == "original":  # what a conversion put aside
            shutil.copytree(file, folder / file.name)
        elif (
            file.is_file()
            and not file.name.startswith(".")
            and not file.name.endswith(_WEIGHTS)
            and file.name not in _OF_A_RUN
            and file.stat().st_size < _LARGEST_SMALL_FILE
        ):
            shutil.copyfile(file, folder / file.name)


def _compared(
    plan: _Plan, adapters: Sequence[Weighted], folder: Path
) -> Generator[Progress, None, tuple[float, float]]:
    """Compare the merged checkpoint with base + adapters; return effect and error."""
    stage = "comparing with base + adapter"
    yield Progress(stage, 0, 2)
    plain, worn = _worn(plan, adapters)
    gc.collect()  # two models need not be in memory at once
    yield Progress(stage, 1, 2)
    merged = scores(load_local(folder, family=plan.family).model)
    yield Progress(stage, 2, 2)
    effect, error = apart(plain, worn), apart(worn, merged)
    if apart(plain, merged) == 0 or effect == 0:
        raise CheckpointError("the merged model answers exactly as its base: nothing was merged")
    if not error <= _CLOSE * effect:
        raise CheckpointError(
            f"the merged model is not base + adapter: scores differ by up to {error:.3g}, and the "
            f"adapter moves them by {effect:.3g} only; nothing was written. The base's precision "
            "may be too low for so small a change: put the adapter on without merging (--adapter)"
        )
    return effect, error


def _worn(plan: _Plan, adapters: Sequence[Weighted]) -> tuple[Tensor, Tensor]:
    """Return the scores of the base, without and with the adapters."""
    local = load_local(plan.folder, family=plan.family)
    plain = scores(local.model)
    choice = {}
    for at, (adapter, weight) in enumerate(adapters):
        local.add_adapter(adapter, str(at), any_base=True)
        choice[str(at)] = weight
    local.set_adapter(choice)
    return plain, scores(local.model)
