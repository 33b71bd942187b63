"""Files of pictures: named after the wish, never one over another."""

from __future__ import annotations

import re
from contextlib import suppress
from itertools import count
from pathlib import Path

from glmkit import UsageError

_LONGEST = 40
"""Characters of a wish in a file's name: 120 bytes in Chinese, which every file system takes."""
_RESERVED = re.compile(r"(con|prn|aux|nul|com\d|lpt\d)", re.IGNORECASE)


def slug(wish: str) -> str:
    """Return a file's name for a wish: letters and digits of any script, joined by hyphens."""
    name = re.sub(r"[\W_]+", "-", wish.lower())[:_LONGEST].strip("-")
    return f"{name or 'picture'}-" if _RESERVED.fullmatch(name) else name or "picture"


def keep(folder: Path, name: str, content: bytes) -> Path:
    """Write a PNG file under a name that is free, with a number behind it where it is not.

    :raises UsageError: if nothing can be written into the folder.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        return _written(folder, name, content)
    except (FileExistsError, NotADirectoryError, PermissionError) as error:
        raise UsageError(
            f"pictures cannot be written to {folder}: {error.strerror}; name another folder"
        ) from error


def _written(folder: Path, name: str, content: bytes) -> Path:
    for number in count(1):
        path = folder / (f"{name}.png" if number == 1 else f"{name}-{number}.png")
        with suppress(FileExistsError), path.open("xb") as file:
            file.write(content)
            break
    return path
