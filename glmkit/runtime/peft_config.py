"""What an ``adapter_config.json`` says: peft's of 2023 and of today.

Settings that change the arithmetic and that we do not compute are refused by name, rather than
ignored.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ..errors import CheckpointError
from .weights import read_json

_NEUTRAL: Mapping[str, tuple[object, ...]] = {
    "bias": ("none", None),
    "lora_bias": (False, None),
    "modules_to_save": (None, []),
    "layer_replication": (None, []),
    "trainable_token_indices": (None, [], {}),
    "target_parameters": (None, []),
    "use_qalora": (False, None),
    "use_bdlora": (False, None),
    "alora_invocation_tokens": (None, []),
    "arrow_config": (None,),
    "init_lora_weights": (True, False, None, "gaussian", "eva", "orthogonal"),
}
"""Settings and the values with which they change nothing; some ways to begin (PiSSA, OLoRA) also
change the base, whose weights the adapter alone does not tell."""

_MOST = 1 << 16

_NAME = re.compile(r"\^?[\w.-]+\$?")
"""Keys of ``rank_pattern`` that need no regular expression: a module's name, or the end of one."""


@dataclass(frozen=True)
class PeftConfig:
    """The part of a configuration that we compute by."""

    rank: int
    alpha: float
    targets: tuple[str, ...] | None
    """Endings of module names; None where the file has a pattern instead of a list."""
    base_name: str | None
    some_layers: bool
    groups: tuple[bool, ...] = ()
    """``enable_lora`` of peft 0.1 and 0.2: which parts of the fused matrix were trained."""
    rooted: bool = False
    """rsLoRA: alpha is divided by the root of the rank."""
    dora: bool = False
    """Rows have lengths of their own."""
    ranks: Mapping[str, int] = field(default_factory=dict)
    alphas: Mapping[str, float] = field(default_factory=dict)
    excluded: tuple[str, ...] = ()
    """Endings of module names that were left out on purpose."""

    @classmethod
    def read(cls, file: Path) -> PeftConfig:
        """Read and check a configuration.

        :raises CheckpointError: if it is damaged, of another method, or needs what we do not do.
        """
        raw = read_json(file)
        kind = raw.get("peft_type")
        if kind != "LORA":
            raise CheckpointError(f"{file}: peft_type is {kind!r}; glmkit loads 'LORA'")
        for name, neutral in _NEUTRAL.items():
            if name in raw and raw[name] not in neutral:
                raise CheckpointError(
                    f"{file}: {name} is {raw[name]!r}; glmkit loads adapters with {neutral[0]!r} "
                    "only: merge it into its base with the tool that trained it"
                )
        targets = raw.get("target_modules")
        groups = raw.get("enable_lora") or ()
        if not isinstance(groups, (list, tuple)) or not all(type(on) is bool for on in groups):
            raise CheckpointError(f"{file}: enable_lora is {groups!r}; expected true and false")
        excluded = _excluded(file, raw.get("exclude_modules"))
        base = raw.get("base_model_name_or_path")
        return cls(
            _rank(file, raw.get("r")),
            _number(file, "lora_alpha", raw.get("lora_alpha")),
            tuple(map(str, targets)) if isinstance(targets, list) else None,
            base if isinstance(base, str) and base else None,
            some_layers=_chooses(raw, targets, excluded),
            groups=tuple(groups) if any(groups) else (),
            rooted=bool(raw.get("use_rslora", False)),
            dora=bool(raw.get("use_dora", False)),
            ranks={k: _rank(file, v) for k, v in _table(file, raw, "rank_pattern").items()},
            alphas={
                k: _number(file, "alpha_pattern", v)
                for k, v in _table(file, raw, "alpha_pattern").items()
            },
            excluded=excluded,
        )

    def has_alpha(self, alpha: float) -> bool:
        """Tell whether ``alpha`` says the same as the file."""
        return alpha == self.alpha and not self.alphas

    def scale(self, file: Path, stem: str, rank: int) -> float:
        """Return what the product of the halves of one module is multiplied by.

        :raises CheckpointError: if the tensors have another rank than the configuration says.
        """
        expected = _matching(self.ranks, stem, self.rank)
        if rank != expected:
            raise CheckpointError(
                f"{file}: {stem} has rank {rank}, adapter_config.json says {expected}; the files "
                "belong to different adapters"
            )
        alpha = _matching(self.alphas, stem, self.alpha)
        return float(alpha / (rank**0.5 if self.rooted else rank))

    def check_targets(self, file: Path, stems: list[str]) -> None:
        """Check that every kind of module that was trained is in the file, and no other one.

        :raises CheckpointError: if one has no tensors, or one has that was excluded.
        """
        for stem in stems:
            if any(_ends(stem, each) for each in self.excluded):
                raise CheckpointError(
                    f"{file} holds tensors of {stem}, which exclude_modules in "
                    "adapter_config.json leaves out; the files belong to different adapters"
                )
        for target in self.targets or ():
            present = any(_ends(stem, target) for stem in stems)
            if not present and not any(_ends(target, each) for each in self.excluded):
                raise CheckpointError(
                    f"{file} lacks the tensors of {target}, which adapter_config.json names; "
                    "the file is incomplete"
                )


def _ends(stem: str, name: str) -> bool:
    """Tell whether a name is that of a module, or the end of it after a dot."""
    return stem == name or stem.endswith(f".{name}")


def _chooses(raw: Mapping[str, Any], targets: object, excluded: tuple[str, ...]) -> bool:
    """Tell whether only some layers were trained, on purpose."""
    if raw.get("layers_to_transform") is not None or isinstance(targets, str):
        return True
    listed = targets if isinstance(targets, list) else []
    return any(re.search(r"(^|\.)\d+\.", str(each)) for each in (*listed, *excluded))


def _excluded(file: Path, given: object) -> tuple[str, ...]:
    names = [] if given is None else given
    if not isinstance(names, list) or not all(isinstance(each, str) for each in names):
        raise CheckpointError(
            f"{file}: exclude_modules is {str(given)[:60]!r}; glmkit takes a list of module names: "
            "list them there by name, as the tensors do"
        )
    return tuple(names)


def _matching(table: Mapping[str, Any], stem: str, default: Any) -> Any:  # noqa: ANN401
    """Look a module up the way peft does: the first key that its name ends in.

    A key that begins with ``^`` is the whole name.
    """
    for key, value in table.items():
        name = key.removeprefix("^")
        if stem == name or (name == key and stem.endswith(f".{name}")):
            return value
    return default


def _table(file: Path, raw: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    """Return a table by plain names; peft reads its keys as regular expressions.

    Those can be made to run for ever, so that only names are taken: nobody writes other ones.
    """
    table = raw.get(name) or {}
    if not isinstance(table, dict):
        raise CheckpointError(f"{file}: {name} is {table!r}; expected a table")
    plain = {}
    for key, value in table.items():
        literal = key.replace("\\.", ".")
        if not _NAME.fullmatch(literal):
            raise CheckpointError(
                f"{file}: {name} has the pattern {key[:60]!r}; glmkit takes names of modules and "
                "their endings only: write one entry for each module"
            )
        plain[literal.removesuffix("$")] = value
    return plain


def _rank(file: Path, value: object) -> int:
    if type(value) is not int or not 1 <= value <= _MOST:
        raise CheckpointError(f"{file}: the rank is {value!r}; expected 1 to {_MOST}")
    return value


def _number(file: Path, name: str, value: object) -> float:
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 < value < 1e9:
        raise CheckpointError(f"{file}: {name} is {value!r}; expected a number above 0")
    return float(value)
