"""Which files of a folder are documents, and which of them changed."""

from __future__ import annotations

import hashlib
import os
import stat
import time
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from .records import FileState

MAX_FILE_BYTES = 64 << 20
"""Larger files are skipped unless the caller raises the limit."""

_RACY_NS = 2_000_000_000
"""A file changed less than this before it was read may change again within one clock tick."""


@dataclass(frozen=True)
class Found:
    """A document on disk."""

    path: str
    """Relative to the folder, with ``/``."""
    file: Path
    size: int
    mtime_ns: int

    def state(self, sha256: bytes, problem: str | None = None) -> FileState:
        """Return what to remember of this file, read just now."""
        racy = time.time_ns() - self.mtime_ns < _RACY_NS
        return FileState(sha256, self.size, -1 if racy else self.mtime_ns, problem)


@dataclass
class Listing:
    """What a folder holds."""

    documents: list[Found] = field(default_factory=list)
    skipped: list[tuple[str, str]] = field(default_factory=list)
    """Path and reason of what looks like a document and isn't read."""


@dataclass
class Changes:
    """What separates an index from a folder."""

    added: list[tuple[Found, bytes]] = field(default_factory=list)
    """With the SHA-256 of the content, as in the next."""
    changed: list[tuple[Found, bytes]] = field(default_factory=list)
    removed: list[str] = field(default_factory=list)
    touched: dict[str, FileState] = field(default_factory=dict)
    """Same content, other size or time on record."""
    same: set[str] = field(default_factory=set)
    """Paths of the unchanged."""
    skipped: list[tuple[str, str]] = field(default_factory=list)
    """Path and reason of what couldn't be looked at."""

    @property
    def unchanged(self) -> int:
        """How many files are as they were."""
        return len(self.same)

    @property
    def pending(self) -> bool:
        """Whether the index has to be written."""
        return bool(self.added or self.changed or self.removed)


def list_documents(
    folder: Path, *, only: str | None, suffixes: Collection[str], max_file_bytes: int
) -> Listing:
    """List the documents under ``folder`` in a fixed order; links are never followed.

    What a link inside the folder points to is listed itself; a link that leaves the folder is
    named among the skipped. Hidden files and folders and unknown suffixes are passed over.

    :param folder: resolved path.
    :param only: name of the one file to take, None for all.
    """
    listing = Listing()
    for entry in _walk(folder, listing) if only is None else _one(folder, only):
        path = Path(entry.path).relative_to(folder).as_posix()
        if Path(entry.name).suffix.lower() not in suffixes:
            continue
        problem, info = _look(entry, path, max_file_bytes)
        if problem:
            listing.skipped.append((_printable(path), problem))
        elif info is not None:
            file = Path(entry.path)
            listing.documents.append(Found(path, file, info.st_size, info.st_mtime_ns))
    return listing


def _one(folder: Path, name: str) -> list[os.DirEntry[str]]:
    with os.scandir(folder) as entries:
        return [entry for entry in entries if entry.name == name]


def _walk(folder: Path, listing: Listing) -> Iterator[os.DirEntry[str]]:
    """Yield the files under a folder; links are files of their own, or noted as leaving it."""
    stack = [str(folder)]
    while stack:
        try:
            with os.scandir(stack.pop()) as found:
                entries = sorted(found, key=lambda entry: entry.name)
        except OSError as error:
            at = Path(error.filename or "?")
            name = at.relative_to(folder).as_posix() if at.is_relative_to(folder) else at.name
            listing.skipped.append((_printable(name), f"cannot be listed: {error.strerror}"))
            continue
        below = []
        for entry in entries:
            if entry.name.startswith("."):
                continue
            if entry.is_symlink():
                _note_link(Path(entry.path), folder, listing)
            elif entry.is_dir(follow_symlinks=False):
                below.append(entry.path)
            else:
                yield entry
        stack.extend(reversed(below))


def _note_link(link: Path, folder: Path, listing: Listing) -> None:
    name = _printable(link.relative_to(folder).as_posix())
    try:
        target = link.resolve(strict=True)
    except (OSError, RuntimeError):
        listing.skipped.append((name, "broken link"))
        return
    if not target.is_relative_to(folder):
        listing.skipped.append((name, "link that leaves the folder"))


def _look(
    entry: os.DirEntry[str], path: str, max_file_bytes: int
) -> tuple[str, os.stat_result | None]:
    """Return why the file isn't read ("" if it is), and its size and time."""
    try:
        info = entry.stat(follow_symlinks=False)
        path.encode("utf-8")
    except OSError as error:
        return f"cannot be read: {error.strerror}", None
    except UnicodeEncodeError:
        return "its name is not valid UTF-8", None
    if not stat.S_ISREG(info.st_mode):
        return "no regular file", None
    if info.st_size > max_file_bytes:
        limit = f"the limit of {max_file_bytes >> 20} MiB"
        return f"{info.st_size >> 20} MiB, larger than {limit}: split it", None
    return ("", info) if info.st_size else ("empty file", None)


def _printable(path: str) -> str:
    return path.encode("utf-8", "replace").decode("utf-8")


def compare(listing: Listing, known: Mapping[str, FileState]) -> Changes:
    """Find what changed: same size and time are trusted, anything else is read and hashed."""
    changes = Changes(skipped=list(listing.skipped))
    here = set()
    for found in listing.documents:
        here.add(found.path)
        before = known.get(found.path)
        if before and (before.size, before.mtime_ns) == (found.size, found.mtime_ns):
            changes.same.add(found.path)
            continue
        try:
            digest = _sha256(found.file)
        except OSError as error:
            # What an earlier run read of it is dropped: nobody can check it any more.
            here.discard(found.path)
            changes.skipped.append((found.path, f"cannot be read: {error.strerror}"))
            continue
        if before is None:
            changes.added.append((found, digest))
        elif before.sha256 != digest:
            changes.changed.append((found, digest))
        else:
            changes.same.add(found.path)
            _note_touched(changes, found, before)
    changes.removed = [path for path in known if path not in here]
    return changes


def _note_touched(changes: Changes, found: Found, before: FileState) -> None:
    state = found.state(before.sha256, before.problem)
    if state != before:
        changes.touched[found.path] = state


def _sha256(file: Path) -> bytes:
    digest = hashlib.sha256()
    with file.open("rb") as stream:
        while block := stream.read(1 << 20):
            digest.update(block)
    return digest.digest()
