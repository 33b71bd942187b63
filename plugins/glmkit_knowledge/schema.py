"""The tables of a knowledge base's SQLite file."""

from __future__ import annotations

FORMAT = 1
"""Raise this with every change to the tables, the chunking or the segmentation."""

_SCHEMA = """
CREATE TABLE meta (key TEXT PRIMARY KEY, value TEXT NOT NULL);
CREATE TABLE files (
    id INTEGER PRIMARY KEY,
    path TEXT NOT NULL UNIQUE,
    sha256 BLOB NOT NULL,
    size INTEGER NOT NULL,
    mtime_ns INTEGER NOT NULL,
    problem TEXT
);
CREATE TABLE chunks (
    id INTEGER PRIMARY KEY AUTOINCREMENT,
    file_id INTEGER NOT NULL REFERENCES files (id),
    heading TEXT NOT NULL,
    location TEXT NOT NULL,
    text TEXT NOT NULL,
    digest BLOB NOT NULL
);
CREATE INDEX chunks_of_file ON chunks (file_id);
CREATE INDEX chunks_of_digest ON chunks (digest);
CREATE TABLE vectors (digest BLOB PRIMARY KEY, vector BLOB NOT NULL);
CREATE VIRTUAL TABLE words USING fts5 (
    path, heading, text, tokenize = "porter unicode61 remove_diacritics 2 tokenchars '_+#'"
);
"""

STATEMENTS = [each.strip() for each in _SCHEMA.split(";\n") if each.strip()]
"""What creates them, one by one, so that it can be one transaction."""
