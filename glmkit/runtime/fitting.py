"""Whether an adapter fits a model: names and shapes, all checked before anything changes.

Adapters may name the modules as the original checkpoints do, or as any layout in `layouts.py`
that the model comes in; what was trained on the parts of a fused matrix is put together again.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from ..errors import CheckpointError
from ..models.causal import CausalModel, ModelConfig
from ..models.chatglm import ChatGlm
from ..models.layouts import LAYOUTS, Layout
from ..models.prefix import PrefixConfig, PrefixEncoder
from .adapters import Adapter, LowRank
from .fingerprint import Fingerprint

Place = tuple[str, int, int]
"""Our module, which part of it, of how many."""


def fit_lora(adapter: Adapter, model: CausalModel) -> dict[str, LowRank]:
    """Return the parts of a LoRA by the names of the model's own modules.

    :raises CheckpointError: if one tensor does not fit; says what differs.
    """
    shapes = linear_shapes(model)
    placed = _placed(adapter, model, shapes)
    fitted = {}
    for stem, parts in placed.items():
        fitted[stem] = _whole(adapter, model.config, stem, parts, shapes[stem])
    if not adapter.some_layers:
        _check_layers(adapter, model.config, fitted)
    return fitted


def fit_prefix(adapter: Adapter, model: CausalModel) -> PrefixEncoder:
    """Return the encoder of a P-Tuning prefix, in float32 as it was trained.

    :raises CheckpointError: if it was made for a model of another shape.
    """
    config = model.config
    shape = PrefixConfig(
        adapter.prefix["embedding.weight"].shape[0],
        config.layers,
        config.kv_heads,
        config.head_dim,
        config.hidden_size,
        projection=any(key.startswith("trans.") for key in adapter.prefix),
        narrow=isinstance(model, ChatGlm),
    )
    with torch.device("meta"):
        encoder = PrefixEncoder(shape)
    _check_prefix(adapter, encoder, shape)
    filled = {key: value.detach().float().to(model.like.device) for key, value in _prefix(adapter)}
    encoder.load_state_dict(filled, assign=True)
    return encoder.eval().requires_grad_(False)


def _prefix(adapter: Adapter) -> Sequence[tuple[str, Tensor]]:
    return list(adapter.prefix.items())


def _check_prefix(adapter: Adapter, encoder: PrefixEncoder, shape: PrefixConfig) -> None:
    wanted = {key: tuple(value.shape) for key, value in encoder.state_dict().items()}
    missing = sorted(set(wanted) - set(adapter.prefix))
    unknown = sorted(set(adapter.prefix) - set(wanted))
    if missing or unknown:
        what = f"lacks {missing[0]}" if missing else f"holds {unknown[0]}, which has no place"
        raise CheckpointError(f"adapter {adapter.name!r}: the prefix {what}")
    for key, size in wanted.items():
        got = tuple(adapter.prefix[key].shape)
        if got != size:
            raise CheckpointError(
                f"adapter {adapter.name!r}: {key} of the prefix is {list(got)}, a prefix for this "
                f"model ({shape.layers} layers, {shape.kv_heads} key/value heads of "
                f"{shape.head_dim}) is {list(size)}; it was made for another model"
            )


def check_base(adapter: Adapter, base: Fingerprint | None) -> None:
    """Check that an adapter was trained on this very model, where it says so.

    :param base: of the model; None: it is not known, and nothing is checked.
    :raises CheckpointError: if the fingerprints differ; names both models.
    """
    known = adapter.fingerprint
    difference = known.differs(base) if known is not None and base is not None else None
    if known is not None and base is not None and difference is not None:
        raise CheckpointError(
            f"adapter {adapter.name!r} was trained on {known.name}, and {base.name} is another "
            f"model: {difference}; load the model that it was trained on, or pass any_base=True "
            "(--any-base) to try all the same"
        )


def doubt(adapter: Adapter, name: str, family: str | None) -> str | None:
    """Say why an adapter that fits by its shapes may be of no use: generations 2 and 3 are alike.

    :param name: of the model.
    :param family: of the model; None where it is not known.
    """
    said = _FAMILY.search((adapter.base_name or "").lower())
    if said is None or family not in _ALIKE or said[0] == family:
        return None
    return (
        f"adapter {adapter.name!r} says that it was trained on {adapter.base_name}, and {name} is "
        f"taken for a {family}: its shapes fit, its answers may not"
    )


_FAMILY = re.compile(r"chatglm[23]?")
_ALIKE = ("chatglm2", "chatglm3")


def linear_shapes(model: CausalModel) -> dict[str, tuple[int, int]]:
    """Return the (out, in) of every linear layer that an adapter may change, by module."""
    with torch.device("meta"):
        bare = type(model)(model.config)  # the real one may be quantised, or wear adapters
    return {
        stem: (module.out_features, module.in_features)
        for stem, module in bare.named_modules()
        if isinstance(module, nn.Linear) and ".prefix_encoder." not in stem
    }


def names_for(model: CausalModel, shapes: Mapping[str, object]) -> dict[str, Place]:
    """Return every name that adapters may give the model's linear layers."""
    known: dict[str, Place] = {stem: (stem, 0, 1) for stem in shapes}
    for layout in LAYOUTS:
        if layout.model is type(model) and layout.keys:
            for stem in shapes:
                known.update(_sources(layout, stem))
    # Trained on the model without its head, the first name is missing.
    short = {name.partition(".")[2]: place for name, place in known.items() if "." in name}
    return {name: place for name, place in short.items() if "." in name} | known


def _sources(layout: Layout, stem: str) -> dict[str, Place]:
    names = layout.sources(stem)
    return {name: (stem, at, len(names)) for at, name in enumerate(names)}


def _placed(
    adapter: Adapter, model: CausalModel, shapes: Mapping[str, tuple[int, int]]
) -> dict[str, dict[tuple[int, int], LowRank]]:
    """Sort the parts by our own modules."""
    known = names_for(model, shapes)
    unknown = [stem for stem in adapter.parts if stem not in known]
    if unknown:
        raise CheckpointError(_unknown(adapter, model, unknown, known))
    placed: dict[str, dict[tuple[int, int], LowRank]] = {}
    for name, part in adapter.parts.items():
        stem, at, count = known[name]
        placed.setdefault(stem, {})[at, count] = part
    return placed


def _unknown(
    adapter: Adapter, model: CausalModel, unknown: list[str], known: Mapping[str, Place]
) -> str:
    said = f" (it says: {adapter.base_name})" if adapter.base_name else ""
    layers = model.config.layers
    beyond = [stem for stem in unknown if _layer(stem) >= layers and _as_first(stem) in known]
    if len(beyond) == len(unknown):
        most = max(map(_layer, beyond)) + 1
        return (
            f"adapter {adapter.name!r} was made for {most} layers or more{said}, this model has "
            f"{layers}: {beyond[0]} and {2 * len(beyond) - 1} more tensors have no place; "
            "nothing was loaded"
        )
    theirs = sorted({stem.rpartition(".")[2] for stem in unknown})
    ours = sorted({stem.rpartition(".")[2] for stem in known})
    if len(unknown) < len(adapter.parts):
        return (
            f"adapter {adapter.name!r} does not fit{said}: {len(unknown)} of its "
            f"{len(adapter.parts)} modules do not exist in this model, such as {unknown[0]}; "
            "nothing was loaded"
        )
    alike = set(theirs) <= set(ours)
    why = f"here they are elsewhere, such as {next(iter(known.values()))[0]}"
    if not alike:
        why = f"it changes {', '.join(theirs)}, this model has {', '.join(ours)}"
    return (
        f"adapter {adapter.name!r} was made for another architecture{said}: none of its "
        f"{len(adapter.parts)} modules exist here, such as {unknown[0]}; {why}"
    )


def _layer(stem: str) -> int:
    found = re.search(r"\.(\d{1,6})\.", stem)
    return int(found[1]) if found else -1


def _as_first(stem: str) -> str:
    return re.sub(r"\.\d+\.", ".0.", stem, count=1)


def _whole(
    adapter: Adapter,
    config: ModelConfig,
    stem: str,
    parts: Mapping[tuple[int, int], LowRank],
    shape: tuple[int, int],
) -> LowRank:
    """Put the parts of one module together, and check that they have its shape."""
    counts = {count for _, count in parts}
    if len(counts) > 1:
        raise CheckpointError(f"adapter {adapter.name!r} names {stem} in two ways; remove one")
    count = counts.pop()
    rows = _part_rows(config, shape[0], count)
    for (at, _), part in parts.items():
        _check_shape(adapter, config, stem, part, (rows[at], shape[1]))
    if count == 1:
        return parts[0, 1]
    return _fused({at: part for (at, _), part in parts.items()}, rows)


def _part_rows(config: ModelConfig, rows: int, count: int) -> list[int]:
    """Return how many rows of a fused matrix each part has: queries, keys, values, or halves."""
    if count == 3:
        keys = config.kv_heads * config.head_dim
        return [rows - 2 * keys, keys, keys]
    return [rows // count] * count


def _check_shape(
    adapter: Adapter, config: ModelConfig, stem: str, part: LowRank, shape: tuple[int, int]
) -> None:
    got = part.b.shape[0], part.a.shape[1]
    if got == shape:
        return
    said = f" (it says: {adapter.base_name})" if adapter.base_name else ""
    if shape[1] == config.hidden_size != got[1]:
        what = f"hidden size {got[1]}{said}, this model has {config.hidden_size}"
    else:
        what = f"another model{said}"
    raise CheckpointError(
        f"adapter {adapter.name!r} was made for {what}: for {stem} it holds "
        f"{list(got)} (out, in), the model has {list(shape)}; nothing was loaded"
    )


def _fused(parts: Mapping[int, LowRank], rows: Sequence[int]) -> LowRank:
    """Return one pair of halves for a matrix whose parts have pairs of their own.

    Parts with one A between them share it, as when a fused adapter was cut up. Otherwise the ranks
    add up, each part's rows of B beside the others'.
    """
    present = sorted(parts)
    first = parts[present[0]]
    shared = len(present) == len(rows) and all(
        parts[at].scale == first.scale and torch.equal(parts[at].a, first.a) for at in present
    )
    lengths = _lengths(parts, rows)
    if shared:
        return LowRank(first.a, torch.cat([parts[at].b for at in present]), first.scale, lengths)
    b = first.b.new_zeros(sum(rows), sum(parts[at].rank for at in present), dtype=torch.float32)
    column = 0
    for at in present:
        start, rank = sum(rows[:at]), parts[at].rank
        b[start : start + rows[at], column : column + rank] = parts[at].b.float() * parts[at].scale
        column += rank
    return LowRank(torch.cat([parts[at].a.float() for at in present]), b, magnitude=lengths)


def _lengths(parts: Mapping[int, LowRank], rows: Sequence[int]) -> Tensor | None:
    """Return DoRA's lengths of all rows; those of parts without keep their own (NaN)."""
    if all(part.magnitude is None for part in parts.values()):
        return None
    known = {at: part.magnitude for at, part in parts.items() if part.magnitude is not None}
    like = next(iter(known.values()))
    return torch.cat(
        [known.get(at, like.new_full((count,), torch.nan)) for at, count in enumerate(rows)]
    )


def _check_layers(adapter: Adapter, config: ModelConfig, fitted: Mapping[str, LowRank]) -> None:
    """Refuse an adapter that leaves layers out without saying that it chose."""
    kinds: dict[str, set[int]] = {}
    for stem in fitted:
        if _layer(stem) >= 0:
            kinds.setdefault(_as_first(stem), set()).add(_layer(stem))
    for kind, layers in kinds.items():
        missing = sorted(set(range(config.layers)) - layers)
        if missing:
            name = kind.rpartition(".")[2]
            raise CheckpointError(
                f"adapter {adapter.name!r} has no {name} for {len(missing)} of {config.layers} "
                f"layers (layer {missing[0]} is the first): it is incomplete, or was made for a "
                "model with fewer layers; nothing was loaded"
            )
