"""Several LoRAs as one file: exactly, or of a smaller rank with its error."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from glmkit import CheckpointError, UsageError

from .lora import Factors, Lora, Part
from .wearing import state_of

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True)
class Merged:
    """A LoRA made of others."""

    parts: dict[Part, Factors]
    rank: int
    """The largest of its modules."""
    error: float
    """What a smaller rank lost: the norm of the difference, as a share of the whole; 0: nothing."""


def merge(loras: Sequence[tuple[Lora, float]], *, rank: int | None = None) -> Merged:
    """Return the sum of LoRAs, each times its weight.

    :param rank: most that a module of the result has; None: as many as it takes, which is exact.
    :raises UsageError: if the rank is below 1.
    :raises CheckpointError: if two LoRAs were trained on models of other shapes.
    """
    if rank is not None and rank < 1:
        raise UsageError(f"rank must be 1 or more, got {rank}")
    parts = {part: _stacked(list(_with(part, loras)), part) for part in _all_parts(loras)}
    lost = whole = 0.0
    if rank is not None:
        for part, factors in parts.items():
            parts[part], out, total = _rounded(factors, rank)
            lost, whole = lost + out, whole + total
    largest = max(each.down.shape[0] for each in parts.values())
    return Merged(parts, largest, math.sqrt(lost / whole) if whole else 0.0)


def _all_parts(loras: Sequence[tuple[Lora, float]]) -> list[Part]:
    return sorted({part for lora, _ in loras for part in lora.parts})


def _with(part: Part, loras: Sequence[tuple[Lora, float]]) -> Iterator[tuple[Path, Factors, float]]:
    for lora, weight in loras:
        if part in lora.parts:
            yield lora.path, lora.parts[part], weight


def _stacked(found: list[tuple[Path, Factors, float]], part: Part) -> Factors:
    """Return the weighted sum of pairs as one pair: their ranks side by side."""
    import torch

    first, *others = found
    shape = _shape(first[1])
    for path, factors, _ in others:
        if _shape(factors) != shape:
            raise CheckpointError(
                f"{'.'.join(part)} is {shape} in {first[0]} and {_shape(factors)} in {path}; they "
                "were trained on two models and cannot be merged"
            )
    down = torch.cat([factors.down for _, factors, _ in found])
    up = torch.cat([factors.up * weight for _, factors, weight in found], dim=1)
    return Factors(down, up, first[1].key)


def _shape(factors: Factors) -> tuple[int, ...]:
    return (factors.up.shape[0], *factors.down.shape[1:])


def _rounded(factors: Factors, rank: int) -> tuple[Factors, float, float]:
    """Return the best pair of a rank, the squared norm of what it lacks, and that of the whole."""
    import torch

    down, up = factors.down.flatten(1).double(), factors.up.flatten(1).double()
    # The product is never formed: its singular values are those of a small matrix between two
    # orthogonal ones.
    left, upper = torch.linalg.qr(up)
    right, lower = torch.linalg.qr(down.T)
    u, s, v = torch.linalg.svd(upper @ lower.T)
    kept = min(rank, len(s))
    root = s[:kept].sqrt()
    new_up = (left @ u[:, :kept] * root).float().reshape(-1, kept, *factors.up.shape[2:])
    new_down = (root[:, None] * (v[:kept] @ right.T)).float()
    pair = Factors(new_down.reshape(kept, *factors.down.shape[1:]), new_up, factors.key)
    return pair, float(s[kept:].square().sum()), float(s.square().sum())


def save(merged: Merged, file: Path, *, said: str, force: bool = False) -> None:
    """Write a LoRA as a file that diffusers loads.

    :param said: what it was made of, for the file's own notes.
    :raises UsageError: if the file is there already, unless ``force``.
    """
    from safetensors.torch import save_file

    if file.exists() and not force:
        raise UsageError(f"{file} is there already; choose another name, or replace it by --force")
    file.parent.mkdir(parents=True, exist_ok=True)
    state: dict[str, Tensor] = {
        _portable(key): tensor for key, tensor in state_of(merged.parts).items()
    }
    save_file(state, file, metadata={"format": "pt", "glmkit_merged": said})


def _portable(key: str) -> str:
    """Name a tensor of a text encoder as every version of diffusers reads it."""
    component, _, rest = key.partition(".")
    if not component.startswith("text_encoder"):
        return key
    module, half = rest.removesuffix(".weight").rsplit(".", 1)
    way = {"lora_A": "down", "lora_B": "up"}[half]
    return f"{component}.{module}.lora_linear_layer.{way}.weight"
