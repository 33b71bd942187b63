"""What the store keeps of documents."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class StoredChunk:
    """A piece of a document as the index knows it."""

    id: int
    path: str
    """Relative to the folder, with ``/``."""
    heading: str
    """The heading path: ``"Rivers > Nile"``, or ``""``."""
    location: str
    """For a person: ``"Rivers > Nile, line 12"``, ``"page 3"``, ``"row 7"``."""
    text: str
    """The document's own words, for display and citation."""


@dataclass(frozen=True)
class FileState:
    """What was on disk when a file was read."""

    sha256: bytes
    size: int
    mtime_ns: int
    """-1 where the time was too recent to tell a later change."""
    problem: str | None = None
    """Why nothing of this file is in the index."""


@dataclass(frozen=True)
class ChunkRow:
    """A chunk to be stored."""

    heading: str
    location: str
    text: str
    digest: bytes
    """Names the vector of the embedded text."""
    path_words: str
    heading_words: str
    text_words: str


@dataclass(frozen=True)
class Document:
    """A file to be stored with all its chunks."""

    path: str
    state: FileState
    chunks: Sequence[ChunkRow] = ()
