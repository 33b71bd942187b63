"""Writing changes into a store: read, divide, encode, commit.

Vectors are committed as they are made, files as soon as they are complete. A run that was killed
loses a few seconds of encoding, and the next one goes on from there.
"""

from __future__ import annotations

import hashlib
from collections.abc import Generator, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from glmkit import DataError, Encoder, Progress

from .chunking import Piece, chunk
from .readers import Reader, read
from .records import ChunkRow, Document, FileState
from .scan import Changes, Found
from .segment import index_text
from .store import Store

BATCH = 128
"""Texts per call of the encoder: enough to sort by length, few enough to show progress."""


@dataclass(frozen=True)
class _Read:
    """A document that was read and divided."""

    found: Found
    state: FileState
    pieces: list[Piece]


def write_changes(
    store: Store,
    changes: Changes,
    *,
    encoder: Encoder,
    readers: Mapping[str, Reader],
    cache: Path,
) -> Iterator[Progress]:
    """Bring ``store`` to what the folder holds; call with the base's lock held.

    :param cache: private folder for jieba's prepared dictionary.
    """
    if changes.touched:
        store.touch(changes.touched)
    work = [*changes.added, *changes.changed]
    total = sum(found.size for found, _ in work)
    done = 0
    for some in _batches(work, readers):
        size = sum(each.found.size for each in some)
        for share in _encode(store, some, encoder):
            yield Progress("indexing", done + int(share * size), total, "bytes")
        store.replace(_document(each, cache) for each in some)
        done += size
        yield Progress("indexing", done, total, "bytes")
    if changes.removed:
        store.remove(changes.removed)


def _batches(
    work: Sequence[tuple[Found, bytes]], readers: Mapping[str, Reader]
) -> Iterator[list[_Read]]:
    """Group documents so that the encoder gets full batches even from small files."""
    held: list[_Read] = []
    pieces = 0
    for found, sha256 in work:
        document = _read(found, sha256, readers)
        held.append(document)
        pieces += len(document.pieces)
        if pieces >= BATCH:
            yield held
            held, pieces = [], 0
    if held:
        yield held


def _read(found: Found, sha256: bytes, readers: Mapping[str, Reader]) -> _Read:
    try:
        pieces = list(chunk(read(found.file, readers)))
    except DataError as error:
        # A file that the system refuses may be readable next time: no hash, so it is tried again.
        known = b"" if isinstance(error.__cause__, OSError) else sha256
        return _Read(found, found.state(known, str(error)), [])
    return _Read(found, found.state(sha256, None if pieces else "no text in it"), pieces)


def _encode(
    store: Store, documents: Sequence[_Read], encoder: Encoder
) -> Generator[float, None, None]:
    """Encode the texts that no vector is stored for; yield the share that is done, 0..1."""
    pieces = {_digest(piece): piece for each in documents for piece in each.pieces}
    new = store.without_vector(pieces)
    todo = [digest for digest in pieces if digest in new]
    for start in range(0, len(todo), BATCH):
        yield start / len(todo)
        some = todo[start : start + BATCH]
        vectors = encoder.encode([pieces[digest].embedded for digest in some], kind="passage")
        if vectors.shape != (len(some), encoder.dimensions):
            raise DataError(
                f"encoder {encoder.name} gave vectors {vectors.shape} for {len(some)} texts; it"
                f" promised {encoder.dimensions} dimensions"
            )
        store.add_vectors(some, vectors)


def _document(each: _Read, cache: Path) -> Document:
    # The words of the path stand with the first chunk only: in every one they would be as common
    # as stop words.
    path_words = index_text(each.found.path, cache)
    heading, heading_words = "", ""
    rows: list[ChunkRow] = []
    for piece in each.pieces:
        if piece.heading != heading:
            heading, heading_words = piece.heading, index_text(piece.heading, cache)
        text_words = index_text(piece.text, cache)
        rows.append(
            ChunkRow(
                piece.heading,
                piece.location,
                piece.text,
                _digest(piece),
                "" if rows else path_words,
                heading_words,
                text_words,
            )
        )
    return Document(each.found.path, each.state, rows)


def _digest(piece: Piece) -> bytes:
    return hashlib.blake2b(piece.embedded.encode("utf-8"), digest_size=16).digest()
