"""What was said of a model's family goes with it: in `glmkit.json`, beside the files saved.

ChatGLM2 and ChatGLM3 have the same fields and the same tensors; without that file whoever loads
the folder next would have to guess.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from ..about import FILE, read_about


def folder_of(path: object, subfolder: str | None = None) -> Path | None:
    """Return the folder that ``from_pretrained`` was given; None for the name of a repository."""
    if not path:
        return None
    folder = Path(str(path)) / (subfolder or "")
    try:
        return folder if folder.is_dir() else None
    except (OSError, ValueError):  # no path at all
        return None


def settled_family(folder: Path | None) -> str | None:
    """Return the family that the folder's `glmkit.json` names.

    :raises CheckpointError: if the file is damaged.
    """
    found: str | None = read_about(folder).get("family") if folder else None
    return found


def settle(target: Path, family: str, source: Path | None = None) -> Path:
    """Write the family beside a model, with all else that is known of it; return the file.

    :param source: the folder that the model came from.
    """
    known: dict[str, Any] = {**read_about(target), **(read_about(source) if source else {})}
    text = json.dumps(known | {"family": family}, indent=2, ensure_ascii=False)
    (target / FILE).write_text(text + "\n", encoding="utf-8")
    return target / FILE
