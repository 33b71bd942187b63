"""A knowledge base: a folder of documents and the index that is kept of it.

    with KnowledgeBase.open(folder, home=home, encoder=encoder) as base:
        report = yield from base.update()
        best = base.dense(vector, k=20)

The index lives under ``home/knowledge``, never in the folder: a SQLite file that is the truth, and
beside it a FAISS file that is made from it.
"""

from __future__ import annotations

import hashlib
import os
import re
import time
from collections.abc import Generator, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING

from glmkit import DataError, Encoder, Progress, UsageError

from .index import DenseIndex, generation_of, remove_unfinished
from .indexing import write_changes
from .readers import READERS, Reader
from .records import FileState, StoredChunk
from .scan import MAX_FILE_BYTES, Changes, compare, list_documents
from .schema import FORMAT
from .segment import query_terms
from .store import DamagedIndex, Store, new_generation

if TYPE_CHECKING:
    import numpy as np
    from filelock import FileLock

__all__ = ["KnowledgeBase", "StoredChunk", "UpdateReport"]

_POLL_S = 0.5


@dataclass
class UpdateReport:
    """What bringing an index up to date did."""

    added: int = 0
    changed: int = 0
    removed: int = 0
    unchanged: int = 0
    chunks: int = 0
    """Chunks in the index now."""
    skipped: list[tuple[str, str]] = field(default_factory=list)
    """Path and reason of every document that isn't in the index."""
    rebuilt: str | None = None
    """Why the whole index was made anew, for a person; None if it wasn't."""


class KnowledgeBase:
    """A folder of documents (or one file) and its index. Open it with :meth:`open`."""

    def __init__(
        self,
        folder: Path,
        only: str | None,
        place: Path,
        encoder: Encoder,
        *,
        wait_s: float,
        readers: Mapping[str, Reader],
        max_file_bytes: int,
    ) -> None:
        self.folder = folder
        """The folder, resolved; the parent of a base of one file."""
        self.encoder = encoder
        self._only = only
        self._path = place
        self._cache = place.parent
        self._index_path = place.with_suffix(".faiss")
        self._wait_s = wait_s
        self._readers = readers
        self._max_file_bytes = max_file_bytes
        self._store: Store | None = None
        self._index: DenseIndex | None = None
        self._damaged = False

    @classmethod
    def open(
        cls,
        folder: Path,
        *,
        home: Path,
        encoder: Encoder,
        wait_s: float = 600,
        readers: Mapping[str, Reader] = READERS,
        max_file_bytes: int = MAX_FILE_BYTES,
    ) -> KnowledgeBase:
        """Return the knowledge base of a folder or of one file; its index is not touched yet.

        :param home: glmkit's own folder; the index is kept under ``knowledge`` in there.
        :param wait_s: how long :meth:`update` waits for another process that writes the index.
        :param readers: reader per lower-case suffix.
        :raises UsageError: if there is no such folder, or the file has no known suffix.
        """
        resolved = folder.expanduser().resolve()
        if not resolved.exists():
            raise UsageError(f"no such folder or file: {folder}; name one that holds documents")
        only = None if resolved.is_dir() else resolved.name
        if only is not None and resolved.suffix.lower() not in readers:
            raise UsageError(f"cannot read {folder}; documents are {_suffixes(readers)}")
        return cls(
            resolved if only is None else resolved.parent,
            only,
            _place(resolved, home),
            encoder,
            wait_s=wait_s,
            readers=readers,
            max_file_bytes=max_file_bytes,
        )

    def __enter__(self) -> KnowledgeBase:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        """Close the index; closing twice is fine."""
        if self._store is not None:
            self._store.close()
        self._store = self._index = None

    def remove(self) -> None:
        """Close the index and delete its files; the documents stay."""
        self.close()
        for each in self._cache.glob(f"{self._path.stem}.*"):
            each.unlink(missing_ok=True)

    def update(self) -> Generator[Progress, None, UpdateReport]:
        """Bring the index up to date with the folder; return an :class:`UpdateReport`.

        Reads and encodes what is new or changed by content. One process writes at a time; the
        others wait, and say so. Whatever kills it, the next update continues from a right state.

        :raises UsageError: if the folder holds no document that can be read.
        :raises DataError: if the index cannot be written, or another process holds it too long.
        """
        report = self._glance()
        if report is None:
            lock = yield from self._acquire()
            try:
                report = yield from self._mended()
            finally:
                lock.release()
        if report.chunks == 0:
            raise UsageError(self._nothing(report))
        return report

    def dense(self, vector: np.ndarray, k: int) -> list[tuple[int, float]]:
        """Return (chunk id, cosine) of the ``k`` chunks nearest to a unit vector (D,), best first.

        :raises DataError: if the base was never indexed, or its index is damaged.
        """
        return self._current_index().search(vector, k)

    def lexical(self, query: str, k: int) -> list[tuple[int, float]]:
        """Return (chunk id, BM25 score) of the ``k`` chunks that match the words of ``query`` best.

        Stop words are left out; a query of nothing else finds nothing. Higher is better.

        :raises DataError: if the base was never indexed, or its index is damaged.
        """
        terms = query_terms(query, self._cache)
        return self._opened().match(terms, k) if terms and k > 0 else []

    def chunks(self, ids: Sequence[int]) -> list[StoredChunk]:
        """Return chunks in the order of ``ids``.

        An id is left out where an update has removed it since it was found: match by ``id``.

        :raises DataError: if the base was never indexed, or its index is damaged.
        """
        return self._opened().chunks(ids)

    def vectors(self, ids: Sequence[int]) -> np.ndarray:
        """Return vectors (N, D), float32, in the order of ``ids``; zeros where an id is gone.

        :raises DataError: if the base was never indexed, or its index is damaged.
        """
        return self._opened().vectors(ids, self.encoder.dimensions)

    def __len__(self) -> int:
        return len(self._opened())

    # -- opening ---------------------------------------------------------------------------------

    def _opened(self) -> Store:
        """Return the open store of this encoder's space."""
        store = self._present()
        if store is None:
            raise DataError(f"the index of {self.folder} was not built yet; run update() first")
        return store

    def _present(self) -> Store | None:
        """Return the store if it is there, of this format and of this encoder."""
        if self._store is None or self._store.closed:
            store = Store.open(self._path)
            if store is not None and self._mismatch(store) is not None:
                store.close()
                store = None
            self._store = store
        return self._store

    def _mismatch(self, store: Store) -> str | None:
        """Return why this store cannot be used, for a person; None if it can."""
        meta = store.meta()
        written = meta.get("format", "unknown")
        if written != str(FORMAT):
            return f"index format {written}, now {FORMAT}"
        if meta.get("encoder") != self.encoder.name:
            return f"encoder changed from {meta.get('encoder')} to {self.encoder.name}"
        if meta.get("dimensions") != str(self.encoder.dimensions):
            return f"{self.encoder.name} has {self.encoder.dimensions} dimensions now"
        return None

    def _meta(self) -> dict[str, str]:
        return {
            "format": str(FORMAT),
            "encoder": self.encoder.name,
            "dimensions": str(self.encoder.dimensions),
            "folder": str(self.folder),
            "generation": new_generation(),
        }

    def _current_index(self) -> DenseIndex:
        """Return the FAISS index of the store's present generation."""
        store = self._opened()
        generation = store.generation()
        if self._index is None or self._index.generation != generation:
            self._index = DenseIndex.load(self._index_path, generation)
        if self._index is None:
            self._index = DenseIndex.build(*store.all_vectors(self.encoder.dimensions))
            # Only a copy: without space for it the next process builds it again.
            with suppress(DataError):
                self._index.save(self._index_path)
        return self._index

    # -- updating --------------------------------------------------------------------------------

    def _glance(self) -> UpdateReport | None:
        """Return the report if there is nothing to do, without waiting for anybody."""
        try:
            store = self._present()
            if store is None:
                return None
            known = store.files()
            changes = self._changes(known)
            if changes.pending:
                return None
            if changes.touched:
                self._touch(store, changes)
            return _report(changes, known, len(store))
        except DamagedIndex:
            # Moved aside; but that has to be told, and done with the lock held.
            self._damaged = True
            return None

    def _touch(self, store: Store, changes: Changes) -> None:
        """Remember new times, unless another process is writing: then the next update does."""
        from filelock import Timeout

        with suppress(Timeout), _lock_errors(self._path), self._lock().acquire(timeout=0):
            store.touch(changes.touched)

    def _changes(self, known: Mapping[str, FileState]) -> Changes:
        listing = list_documents(
            self.folder,
            only=self._only,
            suffixes=self._readers,
            max_file_bytes=self._max_file_bytes,
        )
        return compare(listing, known)

    def _lock(self) -> FileLock:
        from filelock import FileLock

        # A generator may be resumed by another thread than the one that started it.
        return FileLock(self._path.with_suffix(".lock"), thread_local=False)

    def _acquire(self) -> Generator[Progress, None, FileLock]:
        """Return the base's lock, held; say so while another process has it."""
        from filelock import Timeout

        lock = self._lock()
        started = time.monotonic()
        with _lock_errors(self._path):
            self._cache.mkdir(mode=0o700, parents=True, exist_ok=True)
            while True:
                with suppress(Timeout):
                    lock.acquire(timeout=_POLL_S if time.monotonic() > started + 0.01 else 0)
                    return lock
                waited = time.monotonic() - started
                if waited > self._wait_s:
                    raise DataError(
                        f"another process has been indexing {self.folder} for {waited:.0f} s; wait"
                        f" for it, or end it and run again (lock: {lock.lock_file})"
                    )
                yield Progress("waiting for another process that indexes this folder", int(waited))

    def _mended(self) -> Generator[Progress, None, UpdateReport]:
        """Update with the lock held; begin again with an empty store if this one is damaged."""
        try:
            return (yield from self._apply("index was damaged" if self._damaged else None))
        except DamagedIndex:
            return (yield from self._apply("index was damaged"))

    def _apply(self, rebuilt: str | None) -> Generator[Progress, None, UpdateReport]:
        store, mismatch = self._writable()
        self._store = store
        changes = self._changes(store.files())
        yield from write_changes(
            store, changes, encoder=self.encoder, readers=self._readers, cache=self._cache
        )
        if changes.pending:
            store.sweep()
        self._save_index(store)
        self._damaged = False
        report = _report(changes, store.files(), len(store))
        report.rebuilt = mismatch or rebuilt
        return report

    def _writable(self) -> tuple[Store, str | None]:
        """Return the store to write, and why it had to be made anew although there was one."""
        self.close()
        mismatch = None
        store = Store.open(self._path)
        if store is not None:
            mismatch = self._mismatch(store)
            if mismatch is None:
                return store, None
            store.close()
        return Store.create(self._path, self._meta()), mismatch

    def _save_index(self, store: Store) -> None:
        if generation_of(self._index_path) == store.generation():
            return
        remove_unfinished(self._index_path)
        self._index = DenseIndex.build(*store.all_vectors(self.encoder.dimensions))
        self._index.save(self._index_path)

    def _nothing(self, report: UpdateReport) -> str:
        said = f"no document that can be read in {self.folder}; documents are "
        said += _suffixes(self._readers)
        reasons = "; ".join(f"{path}: {reason}" for path, reason in report.skipped[:3])
        more = f" and {len(report.skipped) - 3} more" if len(report.skipped) > 3 else ""
        return f"{said} (skipped: {reasons}{more})" if reasons else said


def _report(changes: Changes, known: Mapping[str, FileState], chunks: int) -> UpdateReport:
    """Tell what was done; ``known`` is what the store says of its files afterwards."""
    problems = [(path, state.problem) for path, state in known.items() if state.problem]
    bad = {path for path, _ in problems}
    return UpdateReport(
        added=sum(found.path not in bad for found, _ in changes.added),
        changed=sum(found.path not in bad for found, _ in changes.changed),
        removed=len(changes.removed),
        unchanged=changes.unchanged - len(bad & changes.same),
        chunks=chunks,
        skipped=sorted([*changes.skipped, *problems]),
    )


@contextmanager
def _lock_errors(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise DataError(
            f"cannot write the index {path}: {error.strerror or error}; is there space and"
            " permission?"
        ) from error


def _place(resolved: Path, home: Path) -> Path:
    """Return the SQLite path of a folder: readable, and its own for every path."""
    digest = hashlib.sha256(os.fsencode(resolved)).hexdigest()[:12]
    name = re.sub(r"[^\w.-]+", "_", resolved.name.encode("utf-8", "replace").decode())[:40]
    return home / "knowledge" / f"{name}-{digest}.sqlite"


def _suffixes(readers: Mapping[str, Reader]) -> str:
    return ", ".join(sorted(readers))
