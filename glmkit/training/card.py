"""The model card of a run: what was trained, on what, how, and how to use it."""

from __future__ import annotations

import json
import re
import shlex
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from ..catalog import lookup
from ..errors import CheckpointError
from ..models.about import read_about
from ..runtime.adapter_files import CONFIG as ADAPTER
from ..runtime.weights import read_json
from .config import TrainConfig, names

CARD = "README.md"
_TOLD = (
    *("data", "eval_data", "epochs", "max_steps", "batch_size", "gradient_accumulation"),
    *("learning_rate", "scheduler", "warmup_ratio", "optimizer", "weight_decay", "max_length"),
    *("packing", "train_on", "dtype", "seed", "init_adapter"),
)
"""Settings of every recipe that a reader wants to know, if they say something."""


def write_card(
    folder: Path,
    base: Path,
    *,
    run: Mapping[str, Any],
    figures: Mapping[str, float],
    whole: bool = False,
    library: str = "",
    uses: Sequence[str] = (),
) -> Path:
    """Write ``README.md`` into a run folder.

    :param base: the folder of the model that was trained.
    :param run: what ``run.json`` says.
    :param figures: what the run came to, by name: ``loss``, ``eval_loss``, ``steps``.
    :param whole: it is a model, not an adapter.
    :param library: what loads it, where that is another than of language models.
    :param uses: the commands that do.
    """
    library = library or ("glmkit" if whole else "peft")
    uses = uses or list(_uses(folder, base, whole=whole))
    kind = "A model" if whole else "An adapter"
    text = "\n".join(_lines(folder, base, run, figures, (kind, library, uses))) + "\n"
    file = folder / CARD
    file.write_text(text, encoding="utf-8")
    return file


def licence_of(base: Path) -> str | None:
    """Return the licence of a model, where its files or the catalog know it."""
    try:
        said = read_about(base).get("licence")
    except CheckpointError:
        said = None
    if said:
        return str(said)
    entry = lookup(base.name, "model")
    if entry is not None:
        return entry.licence
    return _of_card(base / CARD)


def _of_card(file: Path) -> str | None:
    """Return the licence that the head of a card names."""
    if not file.is_file():
        return None
    text = file.read_text(encoding="utf-8", errors="replace")
    head = text.split("\n---", 1)[0] if text.startswith("---\n") else ""
    found = re.search(r"^license: *(\S.*)$", head, re.MULTILINE)
    return found[1].strip() if found else None


def _lines(
    folder: Path,
    base: Path,
    run: Mapping[str, Any],
    figures: Mapping[str, float],
    what: tuple[str, str, Sequence[str]],
) -> Iterator[str]:
    kind, library, uses = what
    config, licence = run["config"], licence_of(base)
    yield "---"
    yield f"base_model: {json.dumps(base.name, ensure_ascii=False)}"
    yield f"library_name: {library}"
    yield f"tags: [glmkit, {run['recipe']}]"
    if licence:
        yield f"license: {licence if _ID.fullmatch(licence) else 'other'}"
    yield from ("---", "", f"# {folder.absolute().name}", "")
    yield f"{kind} trained from **{base.name}** with `glmkit finetune {run['recipe']}`."
    yield from ("", "## How to use it", "", "```sh", *uses, "```", "")
    yield from ("## How it was made", "", "| | |", "|---|---|")
    yield f"| samples | {run['data'].get('samples', 'unknown')} |"
    for name, value in config.items():
        if (name in _TOLD or name not in _SHARED) and value not in (None, "", [], 0, False, ()):
            shown = ", ".join(map(str, value)) if isinstance(value, (list, tuple)) else str(value)
            yield f"| {name} | {shown} |"
    yield from (f"| {name} | {value:.4g} |" for name, value in figures.items())
    yield ""
    versions = ", ".join(f"{name} {each}" for name, each in run["versions"].items())
    yield f"Made with {versions}; all of it is in `run.json`, the figures in `trainer_log.jsonl`."
    yield from ("", "## Licence", "", _licence(base, licence))


_ID = re.compile(r"[a-z0-9.-]+")


def _called(base: Path) -> str:
    """Return what ``--model`` takes: the name of what was pulled, else the folder as it was given.

    :raises CheckpointError: if the record of what was pulled is damaged.
    """
    file = base / _MANIFEST
    name = read_json(file).get("name") if file.is_file() else None
    return shlex.quote(str(name or base))


_MANIFEST = "glmkit-manifest.json"


def _uses(folder: Path, base: Path, *, whole: bool) -> Iterator[str]:
    name, model = shlex.quote(str(folder)), _called(base)
    if whole:
        yield f"glmkit run chat --model {name}"
        yield f"glmkit batch prompts.jsonl --model {name} -o answers.jsonl"
        return
    yield f"glmkit run chat --model {model} --adapter {name}"
    if (folder / ADAPTER).is_file() and not _is_rounded(base):
        merged = shlex.quote(f"{folder}-merged")
        yield f"glmkit adapters merge {model} {name} -o {merged}  # a model of its own"


def _is_rounded(base: Path) -> bool:
    """Tell whether a model's files hold quantised weights, which nothing is merged into."""
    file = base / "config.json"
    said = read_json(file) if file.is_file() else {}
    return any(said.get(name) for name in ("quantization_config", "quantization_bit"))


def _licence(base: Path, licence: str | None) -> str:
    if licence is None:
        return f"That of {base.name} applies; its files do not name it."
    return f"That of {base.name} applies: {licence}. What was learnt from data is bound by theirs."


_SHARED = frozenset(names(TrainConfig))
