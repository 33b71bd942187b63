"""Folders that appear whole or not at all."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from filelock import FileLock, Timeout

from ..errors import GlmkitError, UsageError

_SPARE = 16 << 20
"""Bytes for what lies beside the weights: vocabulary and settings."""


@contextmanager
def replacing(out: Path, source: Path, *, force: bool) -> Iterator[Path]:
    """Give an empty hidden folder to fill; it becomes ``out`` when the block ends well.

    Whatever goes wrong, or kills the process, ``out`` is as before.

    :param source: where the content comes from; neither folder may lie in the other.
    :param force: replace what ``out`` holds.
    :raises UsageError: if ``out`` may not be written.
    """
    out = out.absolute()
    _refuse_target(out, source, force=force)
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UsageError(f"cannot create {out.parent} ({error.strerror})") from error
    partial = out.with_name(f".{out.name}.partial")
    with _alone(partial, out):
        shutil.rmtree(partial, ignore_errors=True)  # what a killed run left
        partial.mkdir()
        try:
            yield partial
            _refuse_target(out, source, force=force)
            _put(partial, out)
        finally:
            shutil.rmtree(partial, ignore_errors=True)


def _refuse_target(out: Path, source: Path, *, force: bool) -> None:
    here, there = out.resolve(), source.resolve()
    if here == there:
        raise UsageError(f"{out} is what is read; choose another place to write to")
    if here in there.parents or there in here.parents:
        raise UsageError(f"{out} and {source} lie in each other; choose another place to write to")
    if out.exists() and not out.is_dir():
        raise UsageError(f"{out} is a file; choose a folder to write to")
    if out.is_dir() and any(out.iterdir()) and not force:
        raise UsageError(f"{out} is not empty; choose another folder, or replace it with --force")


@contextmanager
def _alone(partial: Path, out: Path) -> Iterator[None]:
    """Hold the lock of an output folder.

    Only who holds it removes its file, and before letting go of it: who waits then finds that
    the file it opened is gone, rather than sharing the lock with whoever made the next one.
    """
    lock = FileLock(partial.with_suffix(".lock"), thread_local=False)
    try:
        lock.acquire(timeout=0)
    except Timeout as error:
        raise UsageError(f"another process is writing {out}; wait for it to end") from error
    try:
        yield
    finally:
        with suppress(OSError):  # Windows removes no open file; then it stays, empty
            os.unlink(lock.lock_file)
        lock.release()


def _put(partial: Path, out: Path) -> None:
    """Move the finished folder to its place; what was there goes last."""
    old = partial.with_suffix(".old")
    shutil.rmtree(old, ignore_errors=True)
    if out.exists():
        os.replace(out, old)
    os.replace(partial, out)
    shutil.rmtree(old, ignore_errors=True)


def require_room(folder: Path, needed: int) -> None:
    """Refuse work that cannot fit on the disk.

    :param needed: bytes of weights to be written below ``folder``.
    :raises GlmkitError: if there is less room.
    """
    free = shutil.disk_usage(folder).free
    if free < needed + _SPARE:
        lacking = (needed + _SPARE - free) / 1e6
        raise GlmkitError(
            f"the disk of {folder.parent} needs {lacking:.0f} MB more room; free some, or write to "
            "another disk"
        )
