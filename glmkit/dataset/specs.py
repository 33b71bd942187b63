"""What somebody names as data: files, folders, names of a listing, and how much of them."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

from ..errors import DataError, UsageError, nearest
from .columns import ColumnNames
from .info import FILE_NAME, Entry, Listing
from .samples import Kind

_AMOUNT = re.compile(r"(?P<name>.+?)(?P<amount>(?:#\d+|@[0-9.eE+-]+){1,2})\Z", re.DOTALL)
_TAKE, _WEIGHT = re.compile(r"#(\d+)"), re.compile(r"@([0-9.eE+-]+)")
SUFFIXES = (".json", ".jsonl", ".ndjson", ".csv", ".tsv", ".parquet")
"""Of the files that a folder is searched for."""


@dataclass(frozen=True)
class Wanted:
    """A file to read, and how much of it."""

    path: Path
    names: ColumnNames = ColumnNames()
    take: int | None = None
    """So many samples of it; None: all."""
    weight: float | None = None
    """Its weight in the mixture."""


def wanted(specs: Iterable[str], listing: Listing, kind: Kind | None = "answers") -> list[Wanted]:
    """Return the files that are named: ``FILE``, ``FOLDER``, ``NAME``, ``FILE#500``, ``FILE@0.3``.

    :param kind: what they are read for; None: anything.
    :raises DataError: if something does not exist.
    :raises UsageError: if nothing is named, or an amount makes no sense.
    """
    found = [each for spec in _parted(specs, listing) for each in _wanted(spec, listing, kind)]
    if not found:
        raise UsageError("no data is named; give files, folders or names of data sets: --data FILE")
    return found


def _parted(specs: Iterable[str], listing: Listing) -> Iterator[str]:
    """Yield single specs; LLaMA-Factory's users write several with commas."""
    for spec in specs:
        parts = [spec] if _is_there(spec, listing) else spec.split(",")
        yield from (each.strip() for each in parts if each.strip())


def _is_there(name: str, listing: Listing) -> bool:
    return name in listing.entries or Path(name).expanduser().exists()


def _wanted(spec: str, listing: Listing, kind: Kind | None) -> Iterator[Wanted]:
    name, take, weight = spec, None, None
    found = None if _is_there(spec, listing) else _AMOUNT.match(spec)
    if found is not None:
        name = found["name"]
        take, weight = _take(found["amount"], spec), _weight(found["amount"], spec)
    files = list(_files(name, listing, kind))
    if len(files) > 1 and (take is not None or weight is not None):
        raise UsageError(f"{spec}: {name} is {len(files)} files; say of each how much of it")
    for each in files:
        limit = each.take if take is None else take
        yield Wanted(each.path, each.names, limit, weight)


def _take(amount: str, spec: str) -> int | None:
    found = _TAKE.findall(amount)
    if found and (len(found) > 1 or int(found[0]) < 1):
        raise UsageError(f"{spec}: write how many samples to take once, 1 or more: FILE#500")
    return int(found[0]) if found else None


def _weight(amount: str, spec: str) -> float | None:
    found = _WEIGHT.findall(amount)
    if not found:
        return None
    try:
        value = float(found[0])
    except ValueError:
        value = 0.0
    if len(found) > 1 or not 0 < value < float("inf"):
        raise UsageError(f"{spec}: the weight in the mixture must be a number above 0: FILE@0.3")
    return value


def _files(name: str, listing: Listing, kind: Kind | None) -> Iterator[Entry]:
    if name in listing.entries:
        entry = listing.entry(name, kind)
        for path in files_in(entry.path) if entry.path.is_dir() else [entry.path]:
            yield replace(entry, path=path)
        return
    path = Path(name).expanduser()
    if not path.exists() and listing.folder is not None and (listing.folder / name).exists():
        path = listing.folder / name
    if not path.exists():
        raise DataError(_missing(name, path, listing))
    for file in files_in(path) if path.is_dir() else [path]:
        yield Entry(name, file)


def is_saved(folder: Path) -> bool:
    """Tell whether a folder is one of `datasets.save_to_disk`."""
    return (folder / "dataset_dict.json").is_file() or (
        (folder / "state.json").is_file() and (folder / "dataset_info.json").is_file()
    )


def files_in(folder: Path) -> list[Path]:
    """Return the files of data in a folder and its folders, in order.

    :raises DataError: if there are none.
    """
    inside = (each for each in sorted(folder.rglob("*")) if each.suffix.lower() in SUFFIXES)
    if is_saved(folder):
        raise DataError(
            f"{folder} holds tokenised data (datasets.save_to_disk), which 'glmkit finetune' alone "
            "takes, without other data and without an amount; here give the files it was made of"
        )
    found = [each for each in inside if each.is_file() and not _aside(each.relative_to(folder))]
    if not found:
        raise DataError(f"the folder {folder} holds no data; files end in {', '.join(SUFFIXES)}")
    return found


def _aside(path: Path) -> bool:
    """Tell whether a file is hidden, or no data itself."""
    return path.name == FILE_NAME or any(each.startswith(".") for each in path.parts)


def _missing(name: str, path: Path, listing: Listing) -> str:
    around = list(path.parent.iterdir()) if path.parent.is_dir() else []
    known = {Path(each).stem: each for each in [*(each.name for each in around), *listing.entries]}
    close = [known[each] for each in nearest(path.stem, known)]
    said = f"there is no data {name!r}: it is no file and no folder"
    said += f", and no name in {listing.folder / FILE_NAME}" if listing.folder else ""
    return said + (f"; did you mean {' or '.join(map(repr, close))}?" if close else "")
