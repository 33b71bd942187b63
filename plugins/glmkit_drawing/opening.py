"""Opening a folder of diffusers' as something that draws: safetensors only, no remote code."""

from __future__ import annotations

import hashlib
import inspect
import json
import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from glmkit import CheckpointError, MissingExtraError, OutOfMemoryError, SourceError

if TYPE_CHECKING:
    import torch

    from glmkit import Glmkit

    from .painter import Painter

INDEX = "model_index.json"
WORDS = "words.txt"


_READS_CHINESE = frozenset({"en", "zh"})
_BILINGUAL = frozenset(
    {
        "CogView4Pipeline",  # below GLM-4
        "KolorsPipeline",  # below ChatGLM3
        "HunyuanDiTPipeline",
        "QwenImagePipeline",
        "ZImagePipeline",
    }
)
"""Pipelines of diffusers' whose text encoders were trained on Chinese wishes, too."""


@dataclass(frozen=True)
class About:
    """What a picture model says of itself in ``glmkit.json``."""

    languages: frozenset[str] = frozenset({"en"})
    """ISO 639-1 codes that its text encoder was trained in."""
    plain: bool = False
    """Whether it was trained on short plain wishes and is told them as they are."""
    steps: int | None = None
    """That suit it; None: as its pipeline has it."""
    guidance: float | None = None
    """That suits it; None: as its pipeline has it."""
    lora_targets: tuple[str, ...] = ("attention",)
    """Which layers of its net learn a thing; see the recipe ``dreambooth``."""
    words: frozenset[str] = frozenset()
    """Every word that it was trained on, in its languages; empty: it knows any."""


def is_diffusers(folder: Path) -> bool:
    """Tell whether a folder is a pipeline of diffusers."""
    return (folder / INDEX).is_file()


def load_default(name: str, app: Glmkit) -> Painter:
    """Open the embedded picture model.

    :raises SourceError: if this installation came without it.
    """
    from . import picture_model

    folder: Path = picture_model.folder()
    if not is_diffusers(folder):
        raise SourceError(
            f"the embedded picture model is not in {folder}: this installation came without it; "
            "install glmkit from a wheel, or name another with --image-model"
        )
    return _open(folder, app, name)


def load_diffusers(path: str, app: Glmkit) -> Painter:
    """Open a folder of diffusers'.

    :raises CheckpointError: if it draws no pictures from text, or its weights cannot be read.
    """
    folder = Path(path)
    if not is_diffusers(folder):
        raise CheckpointError(
            f"{path!r} is no folder of diffusers', which holds a {INDEX}; name the folder or "
            "hub id of a text-to-image model"
        )
    return _open(folder, app, path)


def _open(folder: Path, app: Glmkit, name: str) -> Painter:
    from .painter import Painter

    device = _device(app.config.first_device)
    pipeline = open_pipeline(folder, device)
    return Painter(pipeline, name=name, about=read_about(folder), fingerprint=fingerprint(folder))


def read_about(folder: Path) -> About:
    """Read a folder's ``glmkit.json``.

    :raises CheckpointError: if it is damaged.
    """
    file = folder / "glmkit.json"
    kind = _index(folder).get("_class_name")
    languages = _READS_CHINESE if kind in _BILINGUAL else About.languages
    if not file.is_file():
        return About(languages)
    try:
        said = json.loads(file.read_text(encoding="utf-8"))
        return About(
            frozenset(said.get("languages", languages)),
            bool(said.get("plain", False)),
            said.get("steps"),
            said.get("guidance"),
            tuple(said.get("lora_targets", About.lora_targets)),
            _words(folder / WORDS),
        )
    except (ValueError, AttributeError, TypeError) as error:
        raise CheckpointError(f"{file} is damaged: {error}") from error


def _words(file: Path) -> frozenset[str]:
    return frozenset(file.read_text(encoding="utf-8").split() if file.is_file() else ())


def _device(wanted: str | None) -> str:
    import torch

    if wanted is not None:
        return wanted
    if torch.cuda.is_available():
        return "cuda"
    return "mps" if torch.backends.mps.is_available() else "cpu"


def open_pipeline(folder: Path, device: str) -> Any:  # noqa: ANN401
    """Open a folder, in the precision of :func:`precision_of`.

    :raises CheckpointError: if it draws no pictures from text, or its weights cannot be read.
    """
    if find_spec("diffusers") is None:
        raise MissingExtraError("drawing", "diffusers", "drawing")
    index = _index(folder)
    with _quiet():
        kind = _kind(folder, index)
        try:
            pipeline = kind.from_pretrained(
                folder,
                use_safetensors=True,
                local_files_only=True,
                **_variant(folder),
                **_no_checker(folder, index),
            )
        except (OSError, ValueError, KeyError) as error:
            said = " ".join(str(error).split())[:300]
            raise CheckpointError(
                f"{folder} cannot be opened as a text-to-image model of diffusers, with weights in "
                f"safetensors: {said}"
            ) from error
        pipeline = pipeline.to(
            device, precision_of(folder, device)
        )  # afterwards: versions name that argument differently
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def precision_of(folder: Path, device: str) -> torch.dtype:
    """Return what a folder computes in: single precision on processors, half precision elsewhere.

    A net that was saved in bfloat16 was trained in it and may overflow in float16.
    """
    import torch

    if device == "cpu":
        return torch.float32
    if not _is_bfloat16(folder):
        return torch.float16
    able = not device.startswith("cuda") or torch.cuda.is_bf16_supported(including_emulation=False)
    return torch.bfloat16 if able else torch.float32


def _is_bfloat16(folder: Path) -> bool:
    """Tell whether a folder's net lies in bfloat16: its largest tensor in the first of the files
    that are read; norms may be kept in more.
    """
    from safetensors import SafetensorError, safe_open

    variant = _variant(folder).get("variant")
    found = (each for net in _NETS for each in sorted((folder / net).glob("*.safetensors")))
    files = (each for each in found if (f".{variant}." in each.name) == (variant is not None))
    plain = next((each for each in files if variant or "." not in each.stem), None)
    if plain is None:
        return False  # said where it is loaded
    try:
        with safe_open(plain, framework="pt") as opened:
            tensors = [opened.get_slice(each) for each in opened.keys()]  # noqa: SIM118
            largest = max(tensors, key=lambda each: math.prod(each.get_shape()), default=None)
            return largest is not None and largest.get_dtype() == "BF16"
    except (SafetensorError, OSError):
        return False


_NETS = ("transformer", "unet")


def _index(folder: Path) -> dict[str, Any]:
    try:
        found = json.loads((folder / INDEX).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{folder / INDEX} is damaged: {error}") from error
    if not isinstance(found, dict):
        raise CheckpointError(f"{folder / INDEX} is damaged: it holds no object")
    return found


def _kind(folder: Path, index: Mapping[str, Any]) -> Any:  # noqa: ANN401
    """Return the class of a folder's pipeline, one of diffusers' own.

    Only that one is imported: all of them take half a minute.
    """
    import diffusers

    name = str(index.get("_class_name", ""))
    kind = getattr(diffusers, name, None) if name.endswith("Pipeline") else None
    if kind is None:
        raise CheckpointError(
            f"{folder} names the pipeline {name!r}, which diffusers {diffusers.__version__} does "
            "not have; code that comes with a model is never run"
        )
    takes = inspect.signature(kind.__call__).parameters
    if "prompt" not in takes or "image" in takes:
        raise CheckpointError(f"{folder} is a {name}, which draws no pictures from text alone")
    return kind


def _variant(folder: Path) -> dict[str, str]:
    """Ask for half precision where a folder has nothing else."""
    files = [each.name for each in folder.glob("*/*.safetensors")]
    return {"variant": "fp16"} if files and all(".fp16." in each for each in files) else {}


def _no_checker(folder: Path, index: Mapping[str, Any]) -> dict[str, Any]:
    """Return what says that a folder has no safety checker, where its pipeline may have one."""
    if "safety_checker" not in index or (folder / "safety_checker").is_dir():
        return {}
    return {"safety_checker": None, "feature_extractor": None, "requires_safety_checker": False}


@contextmanager
def _quiet() -> Iterator[None]:
    """Keep the libraries' own bars and warnings off the terminal."""
    import diffusers
    import transformers

    loggers = (diffusers.utils.logging, transformers.utils.logging)
    before = [each.get_verbosity() for each in loggers]
    for each in loggers:
        each.set_verbosity_error()
        each.disable_progress_bar()
    try:
        yield
    finally:
        for each, level in zip(loggers, before, strict=True):
            each.set_verbosity(level)
            each.enable_progress_bar()


@contextmanager
def memory_watched(doing: str, helps: str) -> Iterator[None]:
    """Say in one line what was done when memory ran out, and what helps.

    :raises OutOfMemoryError: if it does.
    """
    try:
        yield
    except (MemoryError, RuntimeError) as error:
        from glmkit.training.below import ran_out

        if not ran_out(error):
            raise
        raise OutOfMemoryError(f"memory ran out while {doing}; what helps: {helps}") from error


_SAMPLE = 1 << 20


def fingerprint(folder: Path) -> str:
    """Return 16 hexadecimal digits that tell a folder's models from others.

    Of large files only size, beginning, middle and end are read.
    """
    digest = hashlib.sha256()
    files = (each for each in folder.rglob("*") if each.suffix in (".safetensors", ".json"))
    for file in sorted(files):
        size = file.stat().st_size
        digest.update(f"{file.relative_to(folder).as_posix()} {size}\n".encode())
        with file.open("rb") as stream:
            if size <= 16 * _SAMPLE:
                digest.update(stream.read())
                continue
            for at in (0, size // 2, size - _SAMPLE):
                stream.seek(at)
                digest.update(stream.read(_SAMPLE))
    return digest.hexdigest()[:16]
