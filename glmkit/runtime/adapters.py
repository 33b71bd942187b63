"""Reading adapters: LoRA in every layout that people have, and P-Tuning prefixes.

What is read is data: whether it fits a model is decided in `fitting.py`, before any weight of the
model changes, and `lora.py` applies it. No tensor of a file is ever left out silently.

Shapes: r rank, in and out the sizes of a linear layer, P prefix entries.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from ..errors import CheckpointError, UsageError
from ..models.files import refuse_pointer
from .adapter_files import CONFIG, FILES, PREFIX, check_numbers, find_adapter, read_tensors
from .fingerprint import Fingerprint
from .peft_config import PeftConfig
from .weights import read_json


class AlphaMissingError(UsageError):
    """A file records no alpha, and none was given."""


@dataclass(frozen=True)
class LowRank:
    """What an adapter adds to a linear layer's matrix: ``scale * b @ a``."""

    a: Tensor
    """(r, in)."""
    b: Tensor
    """(out, r)."""
    scale: float = 1.0
    """alpha / r, as a rule."""
    magnitude: Tensor | None = None
    """DoRA: (out), the length that each row of the changed matrix gets; NaN: its own."""

    @property
    def rank(self) -> int:
        """The rank, r."""
        return self.a.shape[0]

    def delta(self) -> Tensor:
        """Return the change of the matrix, float32 (out, in)."""
        return (self.b.float() @ self.a.float()).mul_(self.scale)

    def rows(self, some: slice) -> LowRank:
        """Return what it adds to some rows of the matrix."""
        lengths = None if self.magnitude is None else self.magnitude[some]
        return LowRank(self.a, self.b[some], self.scale, lengths)

    def over(self, matrix: Tensor) -> tuple[LowRank, Tensor | None]:
        """Return the same without lengths of rows, for one matrix.

        :param matrix: (out, in), plain.
        :return: what is added, and (out) how much of each row of the matrix comes on top of it;
            None: nothing.
        """
        if self.magnitude is None:
            return self, None
        lengths = torch.linalg.vector_norm(matrix.float() + self.delta(), dim=1)
        factor = (self.magnitude.float() / lengths).nan_to_num(nan=1.0)
        return LowRank(self.a, self.b.float() * factor[:, None], self.scale), factor - 1


@dataclass(frozen=True)
class Adapter:
    """What a file adds to a model."""

    name: str
    kind: Literal["lora", "prefix"]
    layout: str
    """How it is written, for a person."""
    parts: Mapping[str, LowRank] = field(default_factory=dict)
    """LoRA: by the module's name as the file has it."""
    prefix: Mapping[str, Tensor] = field(default_factory=dict)
    """P-Tuning: the encoder's tensors, by their names within it."""
    base_name: str | None = None
    """What the file says that it was trained on."""
    fingerprint: Fingerprint | None = None
    """Of the model that it was trained on; adapters that glmkit saved have it."""
    some_layers: bool = False
    """It was trained on chosen layers, so that the others have no tensors."""

    @property
    def parameters(self) -> int:
        """How many numbers it holds."""
        pairs = [each.a.numel() + each.b.numel() for each in self.parts.values()]
        return sum(pairs) + sum(each.numel() for each in self.prefix.values())


def read_adapter(path: Path | str, *, alpha: float | None = None) -> Adapter:
    """Read an adapter: a PEFT folder, a Trainer's save, a raw ``.pt`` file or a prefix folder.

    :param alpha: LoRA's alpha for files that record none.
    :raises CheckpointError: if the files are no adapter, damaged, or need what is not supported.
    :raises UsageError: if alpha is needed and not given, or given and recorded otherwise.
    """
    path = Path(path)
    file = find_adapter(path)
    refuse_pointer(file)
    tensors = read_tensors(file)
    name = path.stem if path.is_file() else path.name
    if any(key.startswith(PREFIX) for key in tensors):
        return _prefix(file, tensors, name=name, alpha=alpha)
    config = PeftConfig.read(file.parent / CONFIG) if _is_recorded(file) else None
    return _lora(file, tensors, config, name=name, alpha=alpha)


def recorded_alpha(path: Path) -> bool:
    """Tell whether a file says its alpha itself.

    :raises CheckpointError: if it is no adapter.
    """
    return _is_recorded(find_adapter(path))


def _is_recorded(file: Path) -> bool:
    return file.name in FILES and (file.parent / CONFIG).is_file()


# ---------------------------------------------------------------------------------------- prefixes


def _prefix(file: Path, tensors: dict[str, Tensor], *, name: str, alpha: float | None) -> Adapter:
    other = [key for key in tensors if not key.startswith(PREFIX)]
    if other:
        raise CheckpointError(
            f"{file} holds a whole model beside its prefix ({other[0]}); load it as a model"
        )
    if alpha is not None:
        raise UsageError(f"{file} holds a P-Tuning prefix, which has no alpha; leave alpha out")
    check_numbers(file, tensors)
    raw = read_json(file.parent / "config.json") if (file.parent / "config.json").is_file() else {}
    found = {key.removeprefix(PREFIX): value for key, value in tensors.items()}
    table = found.get("embedding.weight")
    if table is None or table.dim() != 2:
        raise CheckpointError(f"{file} lacks {PREFIX}embedding.weight (P, width): no prefix")
    length = raw.get("pre_seq_len", table.shape[0])
    if length != table.shape[0]:
        raise CheckpointError(
            f"{file}: the prefix has {table.shape[0]} entries, config.json says pre_seq_len "
            f"{length!r}; the files belong to different prefixes"
        )
    return Adapter(
        name,
        "prefix",
        "P-Tuning prefix",
        prefix=found,
        base_name=_said(raw),
        fingerprint=Fingerprint.read(file.parent),
    )


def _said(raw: Mapping[str, Any]) -> str | None:
    said = raw.get("_name_or_path")
    return said if isinstance(said, str) and said else None


# -------------------------------------------------------------------------------------------- LoRA

_KEY = re.compile(
    r"(?:module\.)?(?P<live>base_model\.model\.)?(?P<stem>.+)\.lora_(?P<side>[AB])"
    r"(?:\.(?P<owner>[^.]+))?\.weight"
)
_MAGNITUDE = re.compile(
    r"(?:module\.)?(?:base_model\.model\.)?(?P<stem>.+)\.lora_magnitude_vector"
    r"(?:\.(?!weight$)(?P<owner>[^.]+))?(?:\.weight)?"
)
"""The lengths of DoRA, as peft saves them and as they are called in a live model."""
_UNSUPPORTED = (
    ("lora_embedding_", "LoRA on a token table"),
    ("modules_to_save", "whole modules that were trained beside the adapter"),
    (".bias", "biases that were trained beside the adapter"),
)


def _lora(
    file: Path,
    tensors: dict[str, Tensor],
    config: PeftConfig | None,
    *,
    name: str,
    alpha: float | None,
) -> Adapter:
    pairs, owners = _pairs(file, tensors)
    check_numbers(file, tensors)
    given = _alpha(file, config, alpha)
    parts = {
        stem: _measured(
            file,
            stem,
            _part(file, stem, pair["A"], pair["B"], config, given),
            pair.get("M"),
            config,
        )
        for stem, pair in pairs.items()
    }
    if config is not None:
        config.check_targets(file, list(parts))
    return Adapter(
        name,
        "lora",
        _layout(file, config, owners, grouped=any(p["B"].dim() == 3 for p in pairs.values())),
        parts,
        base_name=config.base_name if config else None,
        fingerprint=Fingerprint.read(file.parent) if config else None,
        some_layers=config.some_layers if config else False,
    )


def _pairs(
    file: Path, tensors: Mapping[str, Tensor]
) -> tuple[dict[str, dict[str, Tensor]], set[str | None]]:
    """Sort tensors by module; return the adapter names found in the keys too."""
    pairs: dict[str, dict[str, Tensor]] = {}
    owners: set[str | None] = set()
    unknown = []
    for key, tensor in tensors.items():
        found = _KEY.fullmatch(key) or _MAGNITUDE.fullmatch(key)
        if found is None:
            unknown.append(key)
            continue
        side = found.groupdict().get("side", "M")
        pairs.setdefault(found["stem"], {})[side] = tensor
        owners.add(found["owner"])
    _refuse_unknown(file, unknown, len(tensors))
    if len(owners) > 1:
        names = ", ".join(sorted(str(each) for each in owners))
        raise CheckpointError(f"{file} holds several adapters ({names}); save each on its own")
    alone = [
        f"{stem}.lora_{next(iter(pair))}"
        for stem, pair in pairs.items()
        if not {"A", "B"} <= {*pair}
    ]
    if alone:
        raise CheckpointError(
            f"{file}: {len(alone)} of {len(pairs)} modules have one half only, such as "
            f"{alone[0]}; the file is incomplete"
        )
    return pairs, owners


def _refuse_unknown(file: Path, unknown: list[str], total: int) -> None:
    if len(unknown) == total and not any("lora_" in key for key in unknown):
        raise CheckpointError(
            f"{file} holds no LoRA tensors (lora_A, lora_B) and no prefix, but {unknown[0]}: "
            "it is no adapter"
        )
    for mark, what in _UNSUPPORTED:
        found = [key for key in unknown if mark in key]
        if found:
            raise CheckpointError(
                f"{file} holds {what} ({found[0]}); glmkit does not load that: merge it into its "
                "base with the tool that trained it"
            )
    if unknown:
        raise CheckpointError(
            f"{file} holds {len(unknown)} tensors that glmkit has no use for, such as "
            f"{unknown[0]}; nothing was loaded"
        )


def _alpha(file: Path, config: PeftConfig | None, alpha: float | None) -> float | None:
    """Return the alpha of files without a record; check the other ones."""
    if config is None and alpha is None:
        raise AlphaMissingError(
            f"{file} records no alpha, and the effect depends on it: give it with "
            "--adapter-alpha 32 (--alpha 32 with glmkit adapters; adapter_alpha=32 with "
            "glmkit.load), or whatever it was trained with"
        )
    if alpha is not None and not 0 < alpha < 1e9:
        raise UsageError(f"alpha must be above 0, got {alpha!r}")
    if config is not None and alpha is not None and not config.has_alpha(alpha):
        raise UsageError(
            f"{file.parent / CONFIG} says alpha {config.alpha:g}, got alpha={alpha:g}; leave it "
            "out, and give the adapter a weight to scale it"
        )
    return alpha


def _part(
    file: Path,
    stem: str,
    a: Tensor,
    b: Tensor,
    config: PeftConfig | None,
    alpha: float | None,
) -> LowRank:
    if b.dim() == 3:
        a, b, rank = _ungrouped(file, stem, a, b, config)
    else:
        rank = len(a) if a.dim() else 0
    if a.dim() != 2 or b.dim() != 2 or b.shape[1] != a.shape[0] or not a.numel() or not b.numel():
        raise CheckpointError(
            f"{file}: the halves of {stem} do not fit: A {list(a.shape)}, B {list(b.shape)}; "
            "expected (r, in) and (out, r)"
        )
    if config is None:
        return LowRank(a, b, (alpha or 0.0) / rank)
    return LowRank(a, b, config.scale(file, stem, rank))


def _measured(
    file: Path, stem: str, part: LowRank, lengths: Tensor | None, config: PeftConfig | None
) -> LowRank:
    """Add DoRA's lengths of rows, which must be there where the configuration says so."""
    if config is not None and config.dora is not (lengths is not None):
        raise CheckpointError(
            f"{file}: adapter_config.json says use_dora {config.dora}, and {stem} has "
            f"{'no ' if lengths is None else ''}lengths (lora_magnitude_vector); the files belong "
            "to different adapters"
        )
    if lengths is None:
        return part
    if tuple(lengths.shape) != (part.b.shape[0],):
        raise CheckpointError(
            f"{file}: the lengths of {stem} are {list(lengths.shape)}; expected one for each of "
            f"{part.b.shape[0]} rows"
        )
    return replace(part, magnitude=lengths)


def _ungrouped(
    file: Path, stem: str, a: Tensor, b: Tensor, config: PeftConfig | None
) -> tuple[Tensor, Tensor, int]:
    """Rewrite the grouped layout of peft 0.1 and 0.2 as ordinary LoRA; exact.

    The rows of the fused matrix are parted into equal groups. Each enabled group has r rows of A
    and its own rows of B (out / groups, r, 1); a group that is not enabled has none.
    """
    enabled = config.groups if config and config.groups else (True, False, True)
    count, rank = sum(enabled), b.shape[1]
    if b.shape[2] != 1 or a.dim() != 2 or a.shape[0] != count * rank or b.shape[0] % count:
        raise CheckpointError(
            f"{file}: {stem} is in the grouped layout of peft 0.2, but A {list(a.shape)} and B "
            f"{list(b.shape)} do not fit {count} groups"
        )
    rows = b.shape[0] // count
    wide = b.new_zeros(rows * len(enabled), count * rank)
    for at, group in enumerate(each for each, on in enumerate(enabled) if on):
        mine = b[at * rows : (at + 1) * rows, :, 0]
        wide[group * rows : (group + 1) * rows, at * rank : (at + 1) * rank] = mine
    return a, wide, rank


def _layout(
    file: Path, config: PeftConfig | None, owners: set[str | None], *, grouped: bool
) -> str:
    kind = "safetensors" if file.suffix == ".safetensors" else "pickled tensors"
    if config is None:
        name = f"raw parameters ({kind})"
    elif owners == {None}:
        name = f"PEFT folder ({kind})"
    else:
        name = f"Trainer save: live parameter names in a PEFT folder ({kind})"
    return name + (", grouped as by peft 0.1 and 0.2" if grouped else "")
