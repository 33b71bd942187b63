"""Telling checkpoints apart: what an adapter remembers of the model that it was trained on.

The fingerprint is taken from the files: norms and biases whole, and the first row of every matrix.
It stays the same when a checkpoint is cut into other files, converted between layouts or loaded in
another precision. Quantised files keep norms and biases, and only those are compared then.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ..errors import CheckpointError
from ..models.causal import CausalModel
from ..models.layouts import Layout, recognise
from .weights import Weights, read_json

FILE = "glmkit-adapter.json"
_SIZES = ("vocab_size", "hidden_size", "layers", "heads", "kv_heads", "head_dim")
_PREFIX = "transformer.prefix_encoder"


@dataclass(frozen=True)
class Fingerprint:
    """What tells one base model from another."""

    name: str
    """What the model was called; not compared."""
    architecture: str
    sizes: dict[str, int]
    norms: str
    """SHA-256 over norms and biases."""
    matrices: str | None
    """SHA-256 over the first rows; None for quantised files."""

    @classmethod
    def of(cls, folder: Path, name: str | None = None) -> Fingerprint:
        """Take the fingerprint of a checkpoint.

        :raises CheckpointError: if the folder holds none that glmkit runs.
        """
        raw = read_json(folder / "config.json")
        layout = recognise(raw)
        config = layout.shape(raw)
        with torch.device("meta"):
            model = layout.model(config)
        norms, matrices = _hashed(model, layout, Weights(folder), tied=config.tied_head)
        sizes = {each: int(getattr(config, each)) for each in _SIZES}
        return cls(name or folder.name, type(model).__name__, sizes, norms, matrices)

    @classmethod
    def read(cls, folder: Path) -> Fingerprint | None:
        """Return what an adapter's folder remembers; None where it remembers nothing.

        :raises CheckpointError: if the record is damaged.
        """
        file = folder / FILE
        if not file.is_file():
            return None
        raw = read_json(file).get("base")
        if not isinstance(raw, dict):
            raise CheckpointError(f"{file} is damaged: it names no base; delete it to go without")
        return cls._parsed(file, raw)

    @classmethod
    def _parsed(cls, file: Path, raw: dict[str, Any]) -> Fingerprint:
        texts = [raw.get(each) for each in ("name", "architecture", "norms")]
        sizes, matrices = raw.get("sizes"), raw.get("matrices")
        if (
            not all(isinstance(each, str) for each in texts)
            or not isinstance(sizes, dict)
            or not all(type(each) is int for each in sizes.values())
            or not (matrices is None or isinstance(matrices, str))
        ):
            raise CheckpointError(f"{file} is damaged; delete it to go without")
        return cls(str(texts[0]), str(texts[1]), sizes, str(texts[2]), matrices)

    def write(self, folder: Path) -> None:
        """Write it beside an adapter."""
        text = json.dumps({"base": asdict(self)}, indent=2, ensure_ascii=False)
        (folder / FILE).write_text(text + "\n", encoding="utf-8")

    def differs(self, other: Fingerprint) -> str | None:
        """Say in what another model differs from this one; None where it is the same."""
        if self.architecture != other.architecture:
            return f"the architecture is {other.architecture}, not {self.architecture}"
        for name, size in self.sizes.items():
            if other.sizes.get(name) != size:
                return f"{name} is {other.sizes.get(name)}, not {size}"
        if self.norms != other.norms:
            return "its norms and biases hold other values"
        if None not in (self.matrices, other.matrices) and self.matrices != other.matrices:
            return "its matrices hold other values"
        return None


def _hashed(
    model: CausalModel, layout: Layout, weights: Weights, *, tied: bool
) -> tuple[str, str | None]:
    """Hash the small tensors, and the first rows of the large ones where they are plain."""
    norms, matrices = hashlib.sha256(), hashlib.sha256()
    plain = True
    for stem, module in model.named_modules():
        if stem.startswith(_PREFIX) or (tied and stem == model.HEAD):
            continue
        for leaf, _ in module.named_parameters(recurse=False):
            tensors = [_tensor(weights, f"{each}.{leaf}") for each in layout.sources(stem)]
            if leaf == "weight" and isinstance(module, (nn.Linear, nn.Embedding)):
                plain = plain and tensors[0].is_floating_point()
                matrices.update(_bytes(tensors[0][0]))
            else:
                for tensor in tensors:
                    norms.update(_bytes(tensor))
    return norms.hexdigest(), matrices.hexdigest() if plain else None


def _tensor(weights: Weights, key: str) -> Tensor:
    if key not in weights or not weights[key].dim():
        raise CheckpointError(f"{weights.folder} lacks the tensor {key}; fetch the model again")
    return weights[key]


def _bytes(tensor: Tensor) -> bytes:
    """Return the values as float32: half precision of either kind fits exactly."""
    return tensor.detach().float().contiguous().numpy().tobytes()
