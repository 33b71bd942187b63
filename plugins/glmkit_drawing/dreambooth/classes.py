"""Pictures of the class: what the model drew of it before it was taught."""

from __future__ import annotations

import json
from collections.abc import Generator, Mapping
from pathlib import Path
from typing import Any

import torch

from glmkit import StepLog, UsageError
from glmkit.training.folder import CLASS_PICTURES

from .base import draw
from .config import DreamboothConfig
from .photographs import pictures_in

_ABOUT = "pictures.json"


def class_pictures(
    pipeline: Any,  # noqa: ANN401
    config: DreamboothConfig,
    side: int,
    computing: torch.dtype | None = None,
) -> Generator[StepLog, None, list[Path]]:
    """Return the files of pictures of the class; those that lack are drawn first.

    A run that was stopped goes on drawing where it was.

    :param side: width and height.
    :param computing: what products are taken in.
    :raises UsageError: if the folder holds pictures that were drawn of something else.
    """
    folder = Path(config.class_data or Path(config.output) / CLASS_PICTURES).expanduser()
    folder.mkdir(parents=True, exist_ok=True)
    found = pictures_in(folder)
    lacking, about = len(found) < config.class_count, _about(config, side)
    if found and (folder / _ABOUT).is_file():
        # Enough of them may have been drawn otherwise, but not of something else.
        _refuse_others(folder, about if lacking else {"prompt": config.class_prompt})
    if lacking:
        said = json.dumps(about, ensure_ascii=False, indent=1)
        (folder / _ABOUT).write_text(f"{said}\n", encoding="utf-8")
        yield from _drawn(pipeline, config, folder, side, computing)
        found = pictures_in(folder)
    return found[: config.class_count]


def _about(config: DreamboothConfig, side: int) -> dict[str, Any]:
    """Return how pictures are drawn."""
    return {
        "model": Path(config.model).name,
        "prompt": config.class_prompt,
        "side": side,
        "steps": config.sample_steps,
        "guidance": config.guidance,
    }


def _refuse_others(folder: Path, about: Mapping[str, Any]) -> None:
    """Refuse pictures of ours that were drawn in another way than ``about``.

    Photographs that somebody put there are welcome beside.
    """
    try:
        before = dict(json.loads((folder / _ABOUT).read_text(encoding="utf-8")))
    except (ValueError, TypeError):
        before = {}
    differs = [name for name in about if before.get(name) != about[name]]
    if differs:
        said = ", ".join(f"{each} {before.get(each)!r}, now {about[each]!r}" for each in differs)
        raise UsageError(
            f"the pictures in {folder} were drawn otherwise ({said}); delete that folder, or "
            "name another with --class-data"
        )


def _drawn(
    pipeline: Any,  # noqa: ANN401
    config: DreamboothConfig,
    folder: Path,
    side: int,
    computing: torch.dtype | None,
) -> Generator[StepLog, None, None]:
    """Draw until there are enough; every picture has a seed and a name of its own."""
    lacks = config.class_count - len(pictures_in(folder))
    free = (at for at in range(2 * config.class_count) if not (folder / _name(at)).exists())
    numbers = [at for at, _ in zip(free, range(lacks), strict=False)]
    for start in range(0, lacks, config.sample_batch_size):
        yield StepLog(0, 0, note=f"drawing pictures of the class: {start:,} of {lacks:,}")
        some = numbers[start : start + config.sample_batch_size]
        pictures = draw(
            pipeline,
            config.class_prompt or "",
            [config.seed + each for each in some],
            side=side,
            steps=config.sample_steps or 1,
            guidance=config.guidance or 0,
            computing=computing,
        )
        for at, picture in zip(some, pictures, strict=True):
            partial = folder / f".{_name(at)}.partial"
            picture.save(partial, format="PNG")
            partial.replace(folder / _name(at))


def _name(at: int) -> str:
    return f"{at:05d}.png"
