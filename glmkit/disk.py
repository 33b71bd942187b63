"""Room on the disk, and one clear line where there is none."""

from __future__ import annotations

import errno
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from .errors import SourceError

_FULL = {errno.ENOSPC, errno.EDQUOT}


def disk_full(folder: Path, needed: int) -> SourceError:
    """Return the error for a folder that lacks room for ``needed`` bytes."""
    amount = f"{needed / 1e6:.1f} MB ({needed} bytes) more" if needed else "more room"
    return SourceError(
        f"the disk is full: {folder} needs {amount}; free some space, or choose another folder "
        "with --home or GLMKIT_HOME, and run this again"
    )


def require_space(folder: Path, needed: int) -> None:
    """Refuse work that cannot fit.

    :param needed: bytes that are still to be written below ``folder``.
    :raises SourceError: if the disk has less free space than that.
    """
    existing = next(each for each in (folder, *folder.parents) if each.exists())
    free = shutil.disk_usage(existing).free
    if free < needed:
        raise disk_full(folder, needed - free)


def make_folder(folder: Path) -> None:
    """Create a folder of the store.

    :raises SourceError: if that is not possible.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        if error.errno in _FULL:
            raise disk_full(folder, 0) from error
        raise SourceError(
            f"cannot create {folder} ({error.strerror}); choose another folder with --home or "
            "GLMKIT_HOME"
        ) from error


@contextmanager
def explain_full_disk(folder: Path, needed: int = 0) -> Iterator[None]:
    """Turn a full disk into one clear line, whoever ran into it.

    :param folder: what lacks the room.
    :param needed: bytes that were still to come, where that is known.
    :raises SourceError: if the disk is full; other errors pass through.
    """
    from safetensors import SafetensorError

    try:
        yield
    except (OSError, SafetensorError) as error:
        if getattr(error, "errno", None) not in _FULL and "No space left" not in str(error):
            raise
        raise disk_full(folder, needed) from error
