"""Whether the tensors of a folder are those that its config.json promises, by headers alone."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from torch import nn

from ..errors import CheckpointError
from ..models.causal import CausalModel
from ..models.files import is_file
from ..models.layouts import Layout
from .weights import Weights, has_weights

VOCABULARIES = ("ice_text.model", "tokenizer.model", "tokenizer.json")
PREFIX = "transformer.prefix_encoder."
_ADAPTERS = ("adapter_config.json", "adapter_model.safetensors", "adapter_model.bin")
_TIED_HEADS = ("transformer.output_layer.", "lm_head.")
_FLOATS = {"float64", "float32", "float16", "bfloat16"}
QUANTISED = ("weight_scale", "weight_min")


def check_headers(weights: Weights, layout: Layout, model: CausalModel) -> None:
    """Check that every tensor is there, in its shape, and that none is left over.

    How the parts of a quantised matrix fit each other is left to who reads them.

    :param model: of no substance, on the meta device.
    :raises CheckpointError: if the files are not those of the model; says what differs.
    """
    refuse_parts(weights)
    taken: set[str] = set()
    for stem, module in leaves(model):
        if stem == model.HEAD and model.config.tied_head:
            continue
        stems = layout.sources(stem)
        for leaf, meta in module.named_parameters(recurse=False):
            keys = [f"{each}.{leaf}" for each in stems]
            taken.update(keys)
            _check(weights, keys, tuple(meta.shape))
        taken.update(f"{each}.{leaf}" for each in stems for leaf in QUANTISED)
    if model.config.tied_head:
        taken.update(key for key in weights if key.startswith(_TIED_HEADS))
    _refuse_left_over(weights, [k for k in weights if k not in taken and not layout.ignores(k)])


def check_prefix(weights: Weights, model: CausalModel) -> None:
    """Check the tensors of a prefix that lies alone.

    :param model: whose config has a prefix; of no substance, on the meta device.
    :raises CheckpointError: if they do not fit; says what differs.
    """
    taken: set[str] = set()
    for stem, module in leaves(model):
        if not stem.startswith(PREFIX):
            continue
        for leaf, meta in module.named_parameters(recurse=False):
            taken.add(f"{stem}.{leaf}")
            _check(weights, [f"{stem}.{leaf}"], tuple(meta.shape))
    _refuse_left_over(weights, [key for key in weights if key not in taken])


def leaves(model: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    """Yield the modules that hold tensors of their own."""
    for stem, module in model.named_modules():
        if next(module.parameters(recurse=False), None) is not None:
            yield stem, module


def is_prefix(weights: Weights) -> bool:
    """Tell whether the files hold a P-Tuning prefix alone."""
    return len(weights) > 0 and all(key.startswith(PREFIX) for key in weights)


def refuse_parts(weights: Weights) -> None:
    """Refuse what is no model of its own but goes on top of one.

    :raises CheckpointError: says how to load it.
    """
    what = "P-Tuning prefix" if is_prefix(weights) else ""
    if not what and any(".lora_A" in key or ".lora_B" in key for key in weights):
        what = "LoRA adapter"
    if what:
        raise CheckpointError(not_alone(weights.folder, what))


def check_folder(folder: Path) -> None:
    """Refuse what is no folder of a model, by the names of its files.

    :raises CheckpointError: says what it is instead, and what to do with it.
    """
    if not folder.is_dir():
        raise CheckpointError(_no_folder(folder))
    if has_weights(folder):
        return
    if any(is_file(folder / each) for each in _ADAPTERS):
        raise CheckpointError(not_alone(folder, "LoRA adapter"))
    if is_file(folder / "config.json"):
        return
    raw = sorted(each.name for each in folder.glob("*.pt"))
    if raw:
        one = folder / raw[0]
        named = ", ".join(raw[:3]) + (", ..." if len(raw) > 3 else "")
        raise CheckpointError(
            f"{folder} holds {named}, not a model; if that is an adapter, see what it is with: "
            f"glmkit adapters show {one}, and load the model that it was trained on, with "
            f"adapter={str(one)!r}"
        )
    if any(is_file(folder / each) for each in VOCABULARIES):
        raise CheckpointError(f"{folder} holds a vocabulary alone: no config.json and no weights")
    if next(folder.glob("*"), None) is None:
        raise CheckpointError(f"{folder} is an empty folder; give the one that holds config.json")


def _no_folder(path: Path) -> str:
    if is_file(path):
        return (
            f"{path} is a file, not the folder of a model; if it is an adapter, see what it is "
            f"with: glmkit adapters show {path}"
        )
    return f"{path} is not a folder; give the folder that holds config.json"


def not_alone(folder: Path, what: str) -> str:
    """Return what to say of a folder with a part of a model, and how to load it."""
    return (
        f"{folder} holds a {what}, not a model: load the model that it was trained on, "
        f"with adapter={str(folder)!r}"
    )


def _check(weights: Weights, keys: list[str], wanted: tuple[int, ...]) -> None:
    missing = next((key for key in keys if key not in weights), None)
    if missing is not None:
        raise CheckpointError(f"{weights.folder} lacks the tensor {missing}; {_remedy(missing)}")
    if f"{keys[0]}_scale" in weights:
        return
    kinds = {weights.info(key).dtype for key in keys}
    if not kinds <= _FLOATS:
        raise CheckpointError(
            f"{weights.folder}: {keys[0]} holds {' and '.join(sorted(kinds))} and there is no "
            f"{keys[0]}_scale; glmkit reads floating point of 16 to 64 bits, and int8 or uint8 "
            "with scales: fetch another version of the model"
        )
    shapes = [weights.info(key).shape for key in keys]
    fit = all(len(each) == len(wanted) and each[1:] == wanted[1:] for each in shapes)
    if not fit or sum(each[0] for each in shapes) != wanted[0]:
        got = " and ".join(str(list(each)) for each in shapes)
        raise CheckpointError(
            f"{weights.folder}: {keys[0]} has shape {got}, config.json says {list(wanted)}; "
            "the files belong to different models"
        )


def _remedy(key: str) -> str:
    if key.startswith(PREFIX):
        return (
            "config.json promises a prefix (pre_seq_len), which these weights do not have: take "
            "the model's own config.json and load the prefix with adapter=..."
        )
    return "the weights are incomplete or belong to another model than config.json"


def _refuse_left_over(weights: Weights, left: list[str]) -> None:
    if not left:
        return
    hint = "the files belong to different models"
    if all(key.startswith(PREFIX) for key in left):
        hint = "it is a P-Tuning prefix: set pre_seq_len (and prefix_projection) in config.json"
    raise CheckpointError(
        f"{weights.folder} holds {len(left)} tensors that its config.json has no place for, such "
        f"as {left[0]}; {hint}"
    )
