"""The SQLite file of a knowledge base: its one source of truth.

``files`` has a row per document, ``chunks`` its pieces, ``words`` their segmented text (FTS5), and
``vectors`` a vector per distinct embedded text, so that unchanged text is never encoded twice.
Every write is one transaction; a process killed anywhere leaves the state before or after it.
"""

from __future__ import annotations

import math
import os
import sqlite3
import threading
import uuid
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from glmkit import DataError

from .records import Document, FileState, StoredChunk
from .schema import STATEMENTS

if TYPE_CHECKING:
    import numpy as np

_BUSY_TIMEOUT_S = 30
_MOST_VARIABLES = 500

# Safe against a killed process; a power cut may lose the last commit, never the file.
_SAFE_ENOUGH = "PRAGMA synchronous = NORMAL"
_COUNT_ONE = "SELECT count(*) FROM words WHERE words MATCH ?"
# bm25() is negative, lower is better. A word in a heading says more than one in the text.
# The limit keeps SQLite from moving bm25() out of the query that it belongs to.
_MATCH_ONE = """SELECT * FROM (
    SELECT rowid, ? * -bm25(words, 0.5, 2.0, 1.0) AS score FROM words WHERE words MATCH ? LIMIT -1
)"""
_MATCH_ALL = """SELECT rowid, sum(score) AS best FROM ({}) GROUP BY rowid
    ORDER BY best DESC, rowid LIMIT ?"""

_T = TypeVar("_T")


class DamagedIndex(DataError):
    """The SQLite file is damaged; it has been moved aside."""


class Store:
    """One open SQLite file. Threads may share it; processes read while another one writes."""

    def __init__(self, path: Path, connection: sqlite3.Connection) -> None:
        self.path = path
        self._connection = connection
        self._lock = threading.RLock()
        self._inode = path.stat().st_ino
        self.closed = False

    @classmethod
    def open(cls, path: Path) -> Store | None:
        """Open an existing store; None if there is none.

        :raises DamagedIndex: if the file is no database.
        :raises DataError: if it cannot be opened.
        """
        if not path.is_file() or path.stat().st_size == 0:
            return None
        store = cls(path, _connect(path))
        with store._guard(), store._lock:
            store._connection.execute(_SAFE_ENOUGH)
            tables = store._connection.execute("SELECT 1 FROM sqlite_master WHERE name = 'meta'")
            if tables.fetchone():
                return store
        store.close()
        return None

    @classmethod
    def create(cls, path: Path, meta: Mapping[str, str]) -> Store:
        """Replace whatever is at ``path`` by an empty store; call with the base's lock held.

        :raises DataError: if it cannot be written.
        """
        remove(path)
        with _translated(path):
            path.parent.mkdir(parents=True, exist_ok=True)
            connection = _connect(path)
        store = cls(path, connection)
        with store._guard():
            connection.execute("PRAGMA journal_mode = WAL")
            connection.execute(_SAFE_ENOUGH)
        # In one transaction: nobody ever sees half a schema.
        with store._writing():
            for statement in STATEMENTS:
                connection.execute(statement)
            connection.executemany("INSERT INTO meta VALUES (?, ?)", meta.items())
        return store

    def close(self) -> None:
        """Close the connection; closing twice is fine."""
        with self._lock:
            self._connection.close()
            self.closed = True

    def meta(self) -> dict[str, str]:
        """Return format, encoder, dimensions, folder and generation."""
        with self._reading() as db:
            return dict(db.execute("SELECT key, value FROM meta"))

    def generation(self) -> str:
        """Return the name of the present state of the chunks; each change gives it a new one."""
        with self._reading() as db:
            row = db.execute("SELECT value FROM meta WHERE key = 'generation'").fetchone()
            return str(row[0]) if row else ""

    def files(self) -> dict[str, FileState]:
        """Return what is known of each file, by path."""
        with self._reading() as db:
            rows = db.execute("SELECT path, sha256, size, mtime_ns, problem FROM files")
            return {path: FileState(*rest) for path, *rest in rows}

    def __len__(self) -> int:
        with self._reading() as db:
            return int(db.execute("SELECT count(*) FROM chunks").fetchone()[0])

    def without_vector(self, digests: Iterable[bytes]) -> set[bytes]:
        """Return those digests that no vector is stored for."""
        wanted = list(dict.fromkeys(digests))
        known: set[bytes] = set()
        with self._reading() as db:
            for some in _slices(wanted):
                marks = ", ".join("?" * len(some))
                sql = f"SELECT digest FROM vectors WHERE digest IN ({marks})"
                known.update(digest for (digest,) in db.execute(sql, some))
        return set(wanted) - known

    def add_vectors(self, digests: Sequence[bytes], vectors: np.ndarray) -> None:
        """Store vectors (N, D) as float16, which moves a cosine by less than 0.001.

        They stay even if the process dies before their file is complete.
        """
        import numpy as np

        blobs = (row.tobytes() for row in np.asarray(vectors, dtype="<f2"))
        with self._writing() as db:
            db.executemany(
                "INSERT OR REPLACE INTO vectors VALUES (?, ?)", zip(digests, blobs, strict=True)
            )

    def replace(self, documents: Iterable[Document]) -> None:
        """Store documents with their chunks in place of what was stored, all or nothing."""
        with self._writing() as db:
            for document in documents:
                _forget(db, [document.path])
                _insert(db, document)
            _renew(db)

    def remove(self, paths: Sequence[str]) -> None:
        """Drop files and their chunks, all or nothing."""
        with self._writing() as db:
            _forget(db, paths)
            _renew(db)

    def touch(self, states: Mapping[str, FileState]) -> None:
        """Remember new sizes and times of files whose content is the same."""
        with self._writing() as db:
            db.executemany(
                "UPDATE files SET size = ?, mtime_ns = ? WHERE path = ?",
                ((state.size, state.mtime_ns, path) for path, state in states.items()),
            )

    def sweep(self) -> None:
        """Drop the vectors that no chunk has."""
        with self._writing() as db:
            db.execute("DELETE FROM vectors WHERE digest NOT IN (SELECT digest FROM chunks)")

    def chunks(self, ids: Sequence[int]) -> list[StoredChunk]:
        """Return chunks in the order of ``ids``; ids that are gone are left out."""
        sql = (
            "SELECT chunks.id, path, heading, location, text FROM chunks"
            " JOIN files ON files.id = file_id WHERE chunks.id IN ({})"
        )
        with self._reading() as db:
            found = {row[0]: StoredChunk(*row) for row in _by_id(db, sql, ids)}
        return [found[each] for each in ids if each in found]

    def vectors(self, ids: Sequence[int], dimensions: int) -> np.ndarray:
        """Return vectors (N, D), float32, in the order of ``ids``; zeros where an id is gone."""
        import numpy as np

        sql = (
            "SELECT chunks.id, vector FROM chunks JOIN vectors USING (digest)"
            " WHERE chunks.id IN ({})"
        )
        with self._reading() as db:
            found: dict[int, bytes] = dict(_by_id(db, sql, ids))
        out = np.zeros((len(ids), dimensions), dtype=np.float32)
        for row, each in enumerate(ids):
            if each in found:
                out[row] = np.frombuffer(found[each], dtype="<f2")
        return out

    def all_vectors(self, dimensions: int) -> tuple[str, np.ndarray, np.ndarray]:
        """Return generation, ids (N,) int64 and vectors (N, D) float32, of one moment."""
        import numpy as np

        with self._reading() as db:
            rows = db.execute(
                "SELECT (SELECT value FROM meta WHERE key = 'generation'), chunks.id, vector"
                " FROM chunks JOIN vectors USING (digest) ORDER BY chunks.id"
            ).fetchall()
            generation = rows[0][0] if rows else self.generation()
        ids = np.fromiter((row[1] for row in rows), dtype=np.int64, count=len(rows))
        joined = np.frombuffer(b"".join(row[2] for row in rows), dtype="<f2")
        return generation, ids, joined.astype(np.float32).reshape(len(rows), dimensions)

    def match(self, terms: Sequence[str], k: int) -> list[tuple[int, float]]:
        """Return (chunk id, BM25 score) of the ``k`` chunks that match any of the terms best.

        :param terms: distinct words, 1 to 64; each is quoted, so that none can be an operator.
        """
        phrases = ['"' + term.replace('"', '""') + '"' for term in terms]
        with self._reading() as db:
            total = len(self)
            matching = [db.execute(_COUNT_ONE, (phrase,)).fetchone()[0] for phrase in phrases]
            each = [
                (_fix_idf(count, total), phrase)
                for count, phrase in zip(matching, phrases, strict=True)
                if count
            ]
            if not each:
                return []
            sql = _MATCH_ALL.format(" UNION ALL ".join([_MATCH_ONE] * len(each)))
            rows = db.execute(sql, [*(value for pair in each for value in pair), k])
            return [(int(chunk_id), float(score)) for chunk_id, score in rows]

    @contextmanager
    def _reading(self) -> Iterator[sqlite3.Connection]:
        with self._lock, self._guard():
            yield self._connection

    @contextmanager
    def _writing(self) -> Iterator[sqlite3.Connection]:
        """Hold one write transaction: committed at the end, rolled back on any error."""
        with self._lock, self._guard():
            self._connection.execute("BEGIN IMMEDIATE")
            try:
                yield self._connection
                self._connection.execute("COMMIT")
            except BaseException:
                with suppress(sqlite3.Error):
                    self._connection.execute("ROLLBACK")
                raise

    @contextmanager
    def _guard(self) -> Iterator[None]:
        """Turn SQLite's errors into ours; move a damaged file aside."""
        try:
            with _translated(self.path):
                yield
        except DamagedIndex:
            self._set_aside()
            raise

    def _set_aside(self) -> None:
        self.close()
        # Another process may have replaced the file already.
        with suppress(OSError):
            if self.path.stat().st_ino == self._inode:
                set_aside(self.path)


def remove(path: Path) -> None:
    """Delete a store with its journal files, if there is one."""
    for name in (path, *_journals(path)):
        with _translated(path):
            name.unlink(missing_ok=True)


def set_aside(path: Path) -> Path:
    """Rename a damaged store to ``<name>.damaged``, without its journal files."""
    kept = path.with_name(f"{path.name}.damaged")
    os.replace(path, kept)
    for journal in _journals(path):
        journal.unlink(missing_ok=True)
    return kept


def new_generation() -> str:
    """Return a name that no state of any index has had."""
    return uuid.uuid4().hex


def _journals(path: Path) -> list[Path]:
    return [path.with_name(path.name + ending) for ending in ("-wal", "-shm", "-journal")]


def _connect(path: Path) -> sqlite3.Connection:
    with _translated(path):
        return sqlite3.connect(
            path, timeout=_BUSY_TIMEOUT_S, isolation_level=None, check_same_thread=False
        )


@contextmanager
def _translated(path: Path) -> Iterator[None]:
    try:
        yield
    except sqlite3.ProgrammingError:
        raise
    except sqlite3.DatabaseError as error:
        raise _as_ours(error, path) from error
    except OSError as error:
        raise DataError(f"cannot write the index {path}: {error.strerror or error}") from error


def _as_ours(error: sqlite3.DatabaseError, path: Path) -> DataError:
    text = str(error)
    # SQLITE_CORRUPT and SQLITE_NOTADB are the ones that Python raises as the class itself.
    if type(error) is sqlite3.DatabaseError or "decode to UTF-8" in text:
        return DamagedIndex(
            f"the index {path} is damaged ({text}); it was moved aside, run again to rebuild it"
        )
    if "full" in text:
        return DataError(f"no space left for the index {path}; free some and run again")
    if "fts5" in text and "no such module" in text:
        return DataError(f"this Python's SQLite {sqlite3.sqlite_version} has no FTS5 search")
    return DataError(f"cannot use the index {path}: {text}")


def _forget(db: sqlite3.Connection, paths: Sequence[str]) -> None:
    for path in paths:
        row = db.execute("SELECT id FROM files WHERE path = ?", (path,)).fetchone()
        if row is None:
            continue
        db.execute(
            "DELETE FROM words WHERE rowid IN (SELECT id FROM chunks WHERE file_id = ?)", row
        )
        db.execute("DELETE FROM chunks WHERE file_id = ?", row)
        db.execute("DELETE FROM files WHERE id = ?", row)


def _insert(db: sqlite3.Connection, document: Document) -> None:
    state = document.state
    file_id = db.execute(
        "INSERT INTO files (path, sha256, size, mtime_ns, problem) VALUES (?, ?, ?, ?, ?)",
        (document.path, state.sha256, state.size, state.mtime_ns, state.problem),
    ).lastrowid
    for row in document.chunks:
        chunk_id = db.execute(
            "INSERT INTO chunks (file_id, heading, location, text, digest) VALUES (?, ?, ?, ?, ?)",
            (file_id, row.heading, row.location, row.text, row.digest),
        ).lastrowid
        db.execute(
            "INSERT INTO words (rowid, path, heading, text) VALUES (?, ?, ?, ?)",
            (chunk_id, row.path_words, row.heading_words, row.text_words),
        )


def _renew(db: sqlite3.Connection) -> None:
    db.execute("UPDATE meta SET value = ? WHERE key = 'generation'", (new_generation(),))


def _fix_idf(count: int, total: int) -> float:
    """Return what FTS5's score of a single term must be multiplied by.

    FTS5 takes log((N - n + 0.5) / (n + 0.5)) and 0.000001 for words that half of the rows have: in
    a base of one document that is the very word the document is about. log(1 + ...) stays positive.
    """
    odds = (total - count + 0.5) / (count + 0.5)
    taken = math.log(odds)
    return math.log1p(odds) / (taken if taken > 0 else 1e-6)


def _slices(values: Sequence[_T]) -> Iterator[list[_T]]:
    rest = iter(values)
    while some := list(islice(rest, _MOST_VARIABLES)):
        yield some


def _by_id(db: sqlite3.Connection, sql: str, ids: Sequence[int]) -> Iterator[tuple[Any, ...]]:
    for some in _slices([int(each) for each in ids]):
        yield from db.execute(sql.format(", ".join("?" * len(some))), some)
