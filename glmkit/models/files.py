"""Reading the small files of a model folder, every fault as one clear error."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from ..errors import CheckpointError

_LARGEST = 64 << 20
"""Bytes: the largest published index of weights has three."""

_POINTER = "version https://git-lfs"


def read_json(file: Path) -> dict[str, Any]:
    """Return the object in a JSON file.

    :raises CheckpointError: if the file is absent, is no JSON or holds something else.
    """
    if not is_file(file):
        raise CheckpointError(f"{file.parent} holds no {file.name}: it is not a model folder")
    try:
        size = file.stat().st_size
        if size > _LARGEST:
            raise CheckpointError(f"{file} has {size:,} bytes; at most {_LARGEST:,} make sense")
        text = file.read_text(encoding="utf-8")
        value = json.loads(text) if not text.startswith(_POINTER) else None
    except (ValueError, OSError, RecursionError) as error:
        raise CheckpointError(f"{file} is damaged ({error}); fetch it again") from error
    refuse_pointer(file)
    if not isinstance(value, dict):
        raise CheckpointError(f"{file} holds a {type(value).__name__} instead of an object")
    return value


def read_json_if_there(file: Path) -> dict[str, Any]:
    """Return the object in a JSON file, empty where there is no such file.

    :raises CheckpointError: if it is there and damaged.
    """
    return read_json(file) if is_file(file) else {}


def refuse_pointer(file: Path) -> None:
    """Refuse what `git clone` leaves in place of a file where Git LFS is not installed.

    :raises CheckpointError: if it is such a pointer.
    """
    try:
        with file.open("rb") as stream:
            start = stream.read(len(_POINTER))
    except OSError as error:
        raise CheckpointError(f"{file} cannot be read ({error}); fetch it again") from error
    if start == _POINTER.encode():
        raise CheckpointError(
            f"{file} is a Git LFS pointer, not the file itself; run: git lfs pull"
        )


def is_file(file: Path) -> bool:
    """Tell whether there is such a file; a path that cannot be looked at is none."""
    try:
        return file.is_file()
    except (OSError, ValueError):
        return False
