"""Adapters on their way out: saved as peft reads them today, described, checked from headers."""

from __future__ import annotations

import json
import math
import os
from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path

from torch import Tensor

from ..errors import UsageError
from .adapter_files import CONFIG, FILES
from .adapters import Adapter
from .fingerprint import FILE as RECORD, Fingerprint
from .fitting import check_base, doubt, fit_lora, fit_prefix
from .headers import check_headers
from .merging import skeleton
from .weights import Weights


def save_adapter(
    adapter: Adapter,
    folder: Path | str,
    *,
    base: Fingerprint | None = None,
    force: bool = False,
) -> Path:
    """Write a LoRA as the folder that peft writes and reads today, and what it was trained on.

    :param base: of the model; None: what the adapter remembers itself.
    :param force: replace the adapter that the folder holds, and leave its other files.
    :raises UsageError: if the adapter is a prefix, or the folder is not empty.
    """
    from safetensors.torch import save_file

    if adapter.kind != "lora":
        raise UsageError(f"adapter {adapter.name!r} is a P-Tuning prefix; copy its folder instead")
    folder = Path(folder)
    if folder.is_dir() and any(folder.iterdir()) and not force:
        raise UsageError(
            f"{folder} is not empty; choose another folder, or replace it with --force"
        )
    folder.mkdir(parents=True, exist_ok=True)
    partial = folder / f".{FILES[0]}.partial"
    save_file(_tensors(adapter), partial, metadata={"format": "pt"})
    for name in (
        *FILES,
        CONFIG,
        RECORD,
    ):  # of another adapter, which they would say wrong things of
        (folder / name).unlink(missing_ok=True)
    os.replace(partial, folder / FILES[0])  # the adapter may have been read from that very file
    text = json.dumps(_config(adapter), indent=2, sort_keys=True, ensure_ascii=False)
    (folder / CONFIG).write_text(text + "\n", encoding="utf-8")
    known = base or adapter.fingerprint
    if known is not None:
        known.write(folder)
    return folder


def _tensors(adapter: Adapter) -> dict[str, Tensor]:
    """Return the tensors of a LoRA by the names that peft writes today."""
    tensors = {}
    for stem, part in adapter.parts.items():
        tensors[f"base_model.model.{stem}.lora_A.weight"] = part.a.detach().cpu().contiguous()
        tensors[f"base_model.model.{stem}.lora_B.weight"] = part.b.detach().cpu().contiguous()
        if part.magnitude is not None:
            lengths = part.magnitude.detach().cpu().contiguous()
            tensors[f"base_model.model.{stem}.lora_magnitude_vector"] = lengths
    return tensors


def _config(adapter: Adapter) -> dict[str, object]:
    """Return the adapter_config.json of an adapter."""
    ranks = {stem: part.rank for stem, part in adapter.parts.items()}
    alphas = {stem: _rounded(part.scale * part.rank) for stem, part in adapter.parts.items()}
    rank = Counter(ranks.values()).most_common(1)[0][0]
    alpha = Counter(alphas.values()).most_common(1)[0][0]
    stems = sorted(adapter.parts)
    leaves = sorted({stem.rpartition(".")[2] for stem in stems})
    return {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": adapter.base_name,
        "r": rank,
        "lora_alpha": alpha,
        "target_modules": stems if adapter.some_layers else leaves,
        "rank_pattern": {stem: each for stem, each in ranks.items() if each != rank},
        "alpha_pattern": {stem: each for stem, each in alphas.items() if each != alpha},
        "lora_dropout": 0.0,
        "bias": "none",
        "fan_in_fan_out": False,
        "inference_mode": True,
        "init_lora_weights": True,
        "modules_to_save": None,
        "use_rslora": False,
        "use_dora": any(part.magnitude is not None for part in adapter.parts.values()),
    }


def _rounded(alpha: float) -> float:
    """Return a whole number where it is one but for rounding."""
    nearest = round(alpha)
    return nearest if nearest and math.isclose(alpha, nearest, rel_tol=1e-9) else alpha


def describe(adapter: Adapter) -> Iterator[tuple[str, str]]:
    """Yield what there is to know of an adapter, for a person."""
    yield "name", adapter.name
    dora = any(part.magnitude is not None for part in adapter.parts.values())
    lora = "LoRA with lengths of rows (DoRA)" if dora else "LoRA"
    yield "kind", lora if adapter.kind == "lora" else "P-Tuning prefix"
    yield "layout", adapter.layout
    if adapter.kind == "lora":
        parts = list(adapter.parts.values())
        yield "rank", _listed(part.rank for part in parts)
        yield "alpha", _listed(_rounded(part.scale * part.rank) for part in parts)
        yield "scale", _listed(part.scale for part in parts)
        yield "modules", _modules(adapter)
        yield "inputs", _listed(part.a.shape[1] for part in parts)
    else:
        yield "entries", str(adapter.prefix["embedding.weight"].shape[0])
        yield "projection", "yes" if "trans.0.weight" in adapter.prefix else "no"
    yield "parameters", f"{adapter.parameters:,}"
    yield "trained on", adapter.base_name or "not recorded"
    known = adapter.fingerprint
    yield "fingerprint", f"{known.name} {known.norms[:16]}" if known else "not recorded"


def _listed(values: Iterable[float]) -> str:
    return ", ".join(f"{each:g}" for each in sorted(set(values)))


def _modules(adapter: Adapter) -> str:
    counts = Counter(stem.rpartition(".")[2] for stem in adapter.parts)
    return ", ".join(f"{name} x{count}" for name, count in sorted(counts.items()))


def _origin(adapter: Adapter, folder: Path, name: str, family: str, *, any_base: bool) -> str:
    """Say what is known of the model that an adapter was trained on."""
    if adapter.fingerprint is None:
        recorded = "nothing is recorded of the model that it was trained on"
        return doubt(adapter, name, family) or recorded
    own = Fingerprint.of(folder, name)
    if any_base and own is not None and adapter.fingerprint.differs(own) is not None:
        return f"it was trained on {adapter.fingerprint.name}, another model: taken all the same"
    check_base(adapter, own)
    return "it was trained on this very model"


def check(
    adapter: Adapter,
    folder: Path,
    *,
    name: str,
    family: str | None = None,
    any_base: bool = False,
) -> str:
    """Check an adapter against a checkpoint without loading it; say how it fits.

    :raises CheckpointError: if it does not fit; says what differs.
    """
    layout, model, found = skeleton(folder, family)
    check_headers(Weights(folder), layout, model)
    if adapter.kind == "prefix":
        entries = fit_prefix(adapter, model).config.length
        return f"{adapter.name} fits {name}: a prefix of {entries} entries"
    fitted = fit_lora(adapter, model)
    known = _origin(adapter, folder, name, found, any_base=any_base)
    tensors = 2 * len(adapter.parts)
    return f"{adapter.name} fits {name}: all {tensors} tensors, {len(fitted)} matrices; {known}"
