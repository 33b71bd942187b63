"""Opening folders through transformers: no code of theirs, no network, one line for each fault."""

from __future__ import annotations

import pickle
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from safetensors import SafetensorError

from ...errors import CheckpointError, MissingExtraError, UsageError
from ...models.files import read_json
from ..loading import device_of
from ..pages import available_memory

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

_DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


def opened(
    folder: Path, *, device: str | None, dtype: str | None
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase | None]:
    """Load the model of a folder, and its tokenizer if it has one.

    :raises UsageError: if ``device`` or ``dtype`` cannot be used.
    :raises MissingExtraError: if transformers is not installed.
    :raises CheckpointError: if transformers cannot load it, or only with code in the folder.
    """
    raw = read_json(folder / "config.json")
    _refuse_own(folder, raw)
    refuse_unknown(folder, raw)
    from transformers import AutoModelForCausalLM

    where = device_of(device)
    chosen = _dtype(dtype, where, folder)
    with _explained(folder), _silent():
        loaded: Any = AutoModelForCausalLM.from_pretrained(
            folder,
            dtype=chosen,
            local_files_only=True,
            trust_remote_code=False,
            output_loading_info=True,
        )
    model, found = loaded
    _refuse_incomplete(folder, found)
    return model.to(where).eval().requires_grad_(False), _tokenizer(folder)


def _refuse_incomplete(folder: Path, found: dict[str, Any]) -> None:
    """Refuse weights that transformers would make up."""
    lacking = sorted(map(str, [*found["missing_keys"], *found["mismatched_keys"]]))
    if lacking:
        raise CheckpointError(
            f"{folder}: the weights of {len(lacking)} tensors are missing or of another shape, "
            f"such as {lacking[0]}; they are incomplete or belong to another model than config.json"
        )


def _refuse_own(folder: Path, raw: dict[str, Any]) -> None:
    """Refuse weights that are rounded as only glmkit does it."""
    how = raw.get("quantization_config")
    if isinstance(how, dict) and how.get("quant_method") == "glmkit":
        raise CheckpointError(
            f"{folder} is in glmkit's own int{how.get('bits')} layout, which transformers does "
            "not read; leave --engine out"
        )


def refuse_unknown(folder: Path, raw: dict[str, Any]) -> None:
    """Refuse what the installed transformers does not run.

    :param raw: the folder's parsed config.json.
    :raises MissingExtraError: if transformers is not installed.
    :raises CheckpointError: if it does not know the model, or only the folder's own code does.
    """
    try:
        import transformers  # noqa: F401  its modules may be loaded though it cannot be imported
        from transformers.models.auto.modeling_auto import (
            MODEL_FOR_CAUSAL_LM_MAPPING_NAMES as KNOWN,
        )
    except ImportError as error:
        raise MissingExtraError("the transformers engine", "transformers", "hf") from error
    kind = raw.get("model_type")
    if isinstance(kind, str) and kind in KNOWN:
        return
    if kind == "chatglm":
        raise CheckpointError(
            f"{folder} is in ChatGLM's original layout, which transformers does not run; leave "
            "--engine out, or convert it first: glmkit convert --to hf"
        )
    if "auto_map" in raw:
        raise CheckpointError(
            f"{folder}: transformers does not know model_type {kind!r}, and the folder wants its "
            "own code run for it (auto_map), which glmkit never does"
        )
    raise CheckpointError(
        f"{folder}: model_type {kind!r} is no language model that glmkit or the installed "
        "transformers runs; a newer transformers may"
    )


def _tokenizer(folder: Path) -> PreTrainedTokenizerBase | None:
    from transformers import AutoTokenizer

    names = ("tokenizer.json", "tokenizer.model", "vocab.json", "vocab.txt", "spiece.model")
    if not any((folder / name).is_file() for name in names):
        return None
    with _explained(folder):
        tokenizer: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(
            folder, local_files_only=True, trust_remote_code=False
        )
    return tokenizer


_FAULTS = (
    *(OSError, ValueError, KeyError, TypeError, ImportError, RuntimeError, AttributeError),
    SafetensorError,
)


@contextmanager
def _explained(folder: Path) -> Iterator[None]:
    """Turn whatever transformers says of a damaged folder into one line."""
    try:
        yield
    except pickle.UnpicklingError as error:
        raise CheckpointError(
            f"{folder} holds a weight file with more than tensors in it; glmkit runs no code from "
            "weight files: get the model as .safetensors"
        ) from error
    except _FAULTS as error:
        said = next(iter(str(error).splitlines()), type(error).__name__)
        raise CheckpointError(f"{folder}: transformers cannot load it: {said}") from error


@contextmanager
def _silent() -> Iterator[None]:
    """Keep transformers from drawing bars of its own."""
    from transformers.utils import logging

    shown = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()  # type: ignore[no-untyped-call]
    try:
        yield
    finally:
        if shown:
            logging.enable_progress_bar()  # type: ignore[no-untyped-call]


def _dtype(name: str | None, device: torch.device, folder: Path) -> torch.dtype | str:
    """Choose the dtype: as asked, else as stored, on processors float32 where it fits."""
    if name is not None:
        if name not in _DTYPES:
            raise UsageError(f"dtype must be one of {', '.join(_DTYPES)}, got {name!r}")
        return _DTYPES[name]
    files = [*folder.glob("*.safetensors"), *folder.glob("*.bin")]
    doubled = 2 * sum(each.stat().st_size for each in files)
    fits = device.type == "cpu" and doubled <= available_memory() // 2
    return torch.float32 if fits else "auto"
