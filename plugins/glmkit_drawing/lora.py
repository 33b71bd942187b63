"""LoRA files for picture models, of every layout, as one: two factors per module, scale included.

Read: diffusers' files, kohya's files, and PEFT's folders (``unet/``, ``text_encoder/``). Nothing is
left out in silence: a key that nobody knows, or that fits no module, is an error that names it.
"""

from __future__ import annotations

import hashlib
import json
import math
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

from glmkit import CheckpointError

if TYPE_CHECKING:
    from torch import Tensor

COMPONENTS = ("unet", "transformer", "text_encoder", "text_encoder_2", "text_encoder_3")
"""Parts of a pipeline that a LoRA may change."""
WEIGHTS = "pytorch_lora_weights.safetensors"
"""The file that diffusers' scripts write into a folder."""
_FORMATS = (
    "glmkit reads LoRA files of diffusers and kohya (.safetensors) and PEFT folders "
    "(unet/, text_encoder/)"
)
Part = tuple[str, str]
"""Component and path of a module in it."""
Scale = Callable[[Part, int], float]
"""Takes a part and its rank."""


@dataclass(frozen=True)
class Factors:
    """What is added to one module: ``up @ down``."""

    down: Tensor
    """(R, I), or (R, I, K, K) for a convolution."""
    up: Tensor
    """(O, R), or (O, R, 1, 1); the scale is part of it."""
    key: str
    """What the file calls the module."""


@dataclass(frozen=True)
class Lora:
    """A LoRA as its files say it."""

    path: Path
    sha256: str
    """Of its weight files, in the order of their names."""
    parts: Mapping[Part, Factors]


def read_lora(path: Path) -> Lora:
    """Read a LoRA of any layout.

    :param path: a ``.safetensors`` file, a folder with ``pytorch_lora_weights.safetensors``, or a
        folder of PEFT's with ``unet/`` and ``text_encoder/`` or one of them.
    :raises CheckpointError: if it is none of these, or a key in it is unknown.
    """
    folders = dict(_peft_folders(path)) if path.is_dir() else {}
    if folders:
        parts: dict[Part, Factors] = {}
        for component, folder in folders.items():
            parts |= _read_peft(folder, component)
        files = [_peft_weights(each) for each in folders.values()]
    else:
        files = [_file_of(path)]
        parts = _read_file(files[0])
    if not parts:
        raise CheckpointError(f"{path} holds no LoRA; {_FORMATS}")
    return Lora(path, _digest(files), parts)


def _digest(files: Iterable[Path]) -> str:
    digest = hashlib.sha256()
    for file in files:
        with file.open("rb") as stream:
            while block := stream.read(1 << 20):
                digest.update(block)
    return digest.hexdigest()


def _file_of(path: Path) -> Path:
    if path.is_file():
        return path
    if not path.is_dir():
        raise CheckpointError(f"no LoRA {str(path)!r}: there is no such file or folder")
    if (path / WEIGHTS).is_file():
        return path / WEIGHTS
    found = sorted(path.glob("*.safetensors"))
    if len(found) == 1:
        return found[0]
    saved = sorted(path.glob("checkpoint-*"), key=lambda each: each.stat().st_mtime)
    if not found and saved:
        raise CheckpointError(
            f"{path} is a run that has not ended, with no LoRA yet; take its newest checkpoint, "
            f"{saved[-1]}, or end it with --resume"
        )
    said = "several: " + ", ".join(each.name for each in found) if found else "none"
    raise CheckpointError(f"{path} should hold one LoRA file and holds {said}; name the file")


# One file: diffusers' or kohya's.


def _read_file(file: Path) -> dict[Part, Factors]:
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(file, framework="pt") as opened:
            about = opened.metadata() or {}
            tensors = {key: opened.get_tensor(key) for key in opened.keys()}  # noqa: SIM118
    except (SafetensorError, OSError) as error:
        raise CheckpointError(f"{file} is no safetensors file: {error}; {_FORMATS}") from error
    if any(key.startswith(_KOHYA) for key in tensors):
        return _from_kohya(file, tensors)
    return _from_diffusers(file, tensors, about)


def _from_diffusers(
    file: Path, tensors: Mapping[str, Tensor], about: Mapping[str, str]
) -> dict[Part, Factors]:
    halves = _Halves(file)
    configs = _configs(file, about)
    for key, tensor in tensors.items():
        component, _, rest = key.partition(".")
        if component not in COMPONENTS:
            raise CheckpointError(
                f"{file}: key {key!r} begins with no part of a picture model "
                f"({', '.join(COMPONENTS)}); {_FORMATS}"
            )
        halves.take(component, rest, tensor, key)
    return halves.joined(lambda part, rank: _scale(configs.get(part[0], {}), part[1], rank))


def _configs(file: Path, about: Mapping[str, str]) -> dict[str, dict[str, Any]]:
    """Return what diffusers noted of each component: rank and alpha."""
    noted = _object(about.get("lora_adapter_metadata", "{}"), f"{file}: its lora_adapter_metadata")
    found: dict[str, dict[str, Any]] = {}
    for key, value in noted.items():
        component, _, name = key.partition(".")
        found.setdefault(component, {})[name] = value
    return found


def _object(text: str, what: str) -> dict[str, Any]:
    """Read a JSON object."""
    try:
        said = json.loads(text)
    except ValueError as error:
        raise CheckpointError(f"{what} is no JSON: {error}") from error
    if not isinstance(said, dict):
        raise CheckpointError(f"{what} should be a JSON object, got {text:.80}")
    return said


_OLD_NAMES = {"to_q": "q_proj", "to_k": "k_proj", "to_v": "v_proj", "to_out": "out_proj"}
_HALF = re.compile(
    r"(?P<module>.+?)(?:\.lora_(?P<peft>[AB])(?:\.\w+)?|[._](?:lora|lora_linear_layer)[._]"
    r"(?P<way>down|up))\.weight"
)
_HINTS = {
    "hada_": "it is a LoHa of LyCORIS",
    "lokr_": "it is a LoKr of LyCORIS",
    "lora_mid": "it is a LoRA with a third, middle factor",
    "dora_scale": "it is a DoRA",
    "lora_magnitude_vector": "it is a DoRA",
    "lora_embedding": "it changes an embedding",
    ".diff": "it is a difference of whole weights",
    "bias": "it changes a bias",
}


def unknown_key(place: Path, key: str) -> CheckpointError:
    """Return the error for a key that is no half of a LoRA's pair."""
    said = next((hint for mark, hint in _HINTS.items() if mark in key), "")
    why = f" ({said}, which is not supported)" if said else ""
    return CheckpointError(f"{place}: key {key!r} is no part of a LoRA{why}; {_FORMATS}")


class _Halves:
    """Brings the two halves of every pair together, and alphas that lie beside them."""

    def __init__(self, place: Path) -> None:
        self._place = place
        self._halves: dict[Part, dict[str, Tensor]] = {}
        self._alphas: dict[Part, float] = {}
        self._keys: dict[Part, str] = {}

    def take(self, component: str, name: str, tensor: Tensor, key: str) -> None:
        """Take one tensor of a component, by its name in there."""
        if name.endswith(".alpha") and tensor.numel() == 1:
            self._alphas[component, _module(component, name.removesuffix(".alpha"))] = float(tensor)
            return
        found = _HALF.fullmatch(name)
        if found is None:
            raise unknown_key(self._place, key)
        part = (component, _module(component, found["module"]))
        half = found["way"] or {"A": "down", "B": "up"}[found["peft"]]
        self._halves.setdefault(part, {})[half] = tensor.float()
        self._keys.setdefault(part, key)

    def joined(self, scale: Scale) -> dict[Part, Factors]:
        """Return all pairs.

        :param scale: takes part and rank, returns what the pair is multiplied with where no alpha
            lies beside it.
        """
        lonely = next((each for each in self._alphas if each not in self._halves), None)
        if lonely is not None:
            raise CheckpointError(f"{self._place}: an alpha of {'.'.join(lonely)!r} without a LoRA")
        return {part: self._pair(part, scale) for part in self._halves}

    def _pair(self, part: Part, scale: Scale) -> Factors:
        halves, key = self._halves[part], self._keys[part]
        if len(halves) != 2:
            (there,) = halves
            raise CheckpointError(
                f"{self._place}: {key!r} has its {there} half only; it is damaged"
            )
        down, up = (tuple(halves[each].shape) for each in ("down", "up"))
        if len(down) not in (2, 4) or not down[0] or (down[0], len(down)) != (*up[1:2], len(up)):
            raise CheckpointError(
                f"{self._place}: the halves of {key!r} do not fit together: {down} and {up}"
            )
        if not all(bool(each.isfinite().all()) for each in halves.values()):
            raise CheckpointError(
                f"{self._place}: {key!r} holds numbers that are not finite; it is damaged"
            )
        rank, alpha = down[0], self._alphas.get(part)
        factor = scale(part, rank) if alpha is None else alpha / rank
        return Factors(halves["down"], halves["up"] * factor, key)


def _module(component: str, name: str) -> str:
    """Return a module's name of today; text encoders keep the ``text_model.`` of all files."""
    *parents, last = name.replace(".processor", "").split(".")
    if not component.startswith("text_encoder"):
        return ".".join([*parents, "to_out.0" if last == "to_out" else last])
    joined = ".".join([*parents, _OLD_NAMES.get(last, last)])
    return f"text_model.{joined}" if joined.startswith("encoder.layers.") else joined


# Kohya's files: paths with underscores, which diffusers knows to take apart.

_KOHYA = ("lora_unet_", "lora_te_", "lora_te1_", "lora_te2_")
_KOHYA_PARTS = ("lora_down.weight", "lora_up.weight", "alpha")
_SDXL = SimpleNamespace(layers_per_block=2)
"""What names like ``input_blocks_4_1`` count by; files that have them are for SDXL and Kolors."""


def _from_kohya(file: Path, tensors: Mapping[str, Tensor]) -> dict[Part, Factors]:
    modules: dict[str, dict[str, Tensor]] = {}
    for key, tensor in tensors.items():
        stem, _, name = key.partition(".")
        if not key.startswith(_KOHYA) or name not in _KOHYA_PARTS:
            raise unknown_key(file, key)
        modules.setdefault(stem, {})[name] = tensor
    parts: dict[Part, Factors] = {}
    for stem, found in modules.items():
        parts |= _kohya_module(file, stem, found)
    return parts


def _kohya_module(file: Path, stem: str, found: Mapping[str, Tensor]) -> dict[Part, Factors]:
    """Read one module by itself, so that an error can name it."""
    from diffusers.loaders import StableDiffusionLoraLoaderMixin as Loader

    down, up = found.get("lora_down.weight"), found.get("lora_up.weight")
    if down is None or up is None:
        raise CheckpointError(f"{file}: {stem!r} lacks one of its two halves; it is damaged")
    alpha = float(found["alpha"]) if "alpha" in found else down.shape[0]
    given = {f"{stem}.lora_down.weight": down, f"{stem}.lora_up.weight": up}
    try:
        renamed, _ = Loader.lora_state_dict(given, unet_config=_SDXL)
    except (KeyError, ValueError, IndexError) as error:
        raise unknown_key(file, f"{stem}.lora_down.weight") from error
    halves = _Halves(file)
    for key, tensor in renamed.items():
        component, _, rest = key.partition(".")
        halves.take(component, rest, tensor, key)
    pairs = halves.joined(lambda part, rank: alpha / rank)
    return {part: Factors(each.down, each.up, stem) for part, each in pairs.items()}


# PEFT's folders.

_PEFT_PREFIX = "base_model.model."


def _peft_folders(path: Path) -> Iterator[tuple[str, Path]]:
    """Yield the component and folder of each adapter that PEFT saved in ``path``."""
    for component in COMPONENTS:
        inside = path / component
        # An adapter with a name of its own lies one folder deeper.
        for folder in (inside, *(sorted(inside.iterdir()) if inside.is_dir() else ())):
            if (folder / "adapter_config.json").is_file():
                yield component, folder
                break
    if (path / "adapter_config.json").is_file():
        yield _component_of(path), path


def _component_of(folder: Path) -> str:
    """Say what a lone adapter was trained on, by the names in it."""
    key = next(iter(_tensors(_peft_weights(folder))), "").removeprefix(_PEFT_PREFIX)
    if folder.name in COMPONENTS:
        return folder.name
    if key.startswith(("text_model.", "encoder.layers.")):
        return "text_encoder"
    return "unet" if key.startswith(_OF_A_UNET) else "transformer"


_OF_A_UNET = ("down_blocks.", "mid_block.", "up_blocks.", "conv_", "time_embedding.")


def _peft_weights(folder: Path) -> Path:
    names = ("adapter_model.safetensors", "adapter_model.bin")
    found = next((folder / each for each in names if (folder / each).is_file()), None)
    if found is None:
        raise CheckpointError(f"{folder} has an adapter_config.json and no {names[0]}")
    return found


def _tensors(file: Path) -> dict[str, Tensor]:
    import pickle

    import torch
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        if file.suffix == ".safetensors":
            return load_file(file)
        loaded: dict[str, Tensor] = torch.load(file, map_location="cpu", weights_only=True)
    except (SafetensorError, OSError, EOFError, RuntimeError, pickle.UnpicklingError) as error:
        raise CheckpointError(f"{file} cannot be read: {error}") from error
    return loaded


def _read_peft(folder: Path, component: str) -> dict[Part, Factors]:
    file = folder / "adapter_config.json"
    config = _object(file.read_text(encoding="utf-8", errors="replace"), str(file))
    kind = str(config.get("peft_type", "LORA")).upper()
    if kind != "LORA" or config.get("use_dora"):
        kind = "DoRA" if kind == "LORA" else kind
        raise CheckpointError(f"{folder} is a {kind} of PEFT, which is not supported; {_FORMATS}")
    halves = _Halves(folder)
    for key, tensor in _tensors(_peft_weights(folder)).items():
        halves.take(component, key.removeprefix(_PEFT_PREFIX), tensor, key)
    return halves.joined(lambda part, rank: _scale(config, part[1], rank))


def _scale(config: Mapping[str, Any], module: str, rank: int) -> float:
    """Return what a pair is multiplied with; without a word of alpha that is 1."""
    try:
        patterns: Mapping[str, float] = config.get("alpha_pattern") or {}
        hits = (each for key, each in patterns.items() if re.fullmatch(rf"(.*\.)?({key})", module))
        alpha = next(hits, config.get("lora_alpha"))
        alpha = None if alpha is None else float(alpha)
    except (TypeError, ValueError, AttributeError, re.error) as error:
        raise CheckpointError(
            f"the LoRA of {module} notes an alpha that is none: {error}"
        ) from error
    if alpha is None:
        return 1.0
    return alpha / (math.sqrt(rank) if config.get("use_rslora") else rank)
