"""Readers: from a file to sections of text that know where they stand.

A reader takes a path and yields :class:`Section` objects; it raises
:class:`~glmkit.errors.DataError` with the reason where a file has nothing to read. The libraries
behind the formats are imported when the first file of that format is read.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from importlib import import_module
from pathlib import Path

from glmkit import DataError, GlmkitError


@dataclass(frozen=True)
class Section:
    """A block of text under one heading path, from one page or line."""

    text: str
    headings: tuple[str, ...] = ()
    line: int | None = None
    """Line of the file that the text begins on, from 1; the text keeps the file's line ends."""
    page: int | None = None
    """Page that the text stands on, from 1."""
    place: str = ""
    """What a person calls this place when it has neither line nor page: ``"row 7"``."""
    whole: bool = False
    """A record of its own: not merged with its neighbours, and kept together where it fits."""


Reader = Callable[[Path], Iterator[Section]]

# What third-party parsers raise on files that are not what their name says. They parse bytes that
# anybody may have written, and each has leaked errors of all these kinds.
_PARSER_FAULTS = (
    ArithmeticError,
    AttributeError,
    EOFError,
    LookupError,
    MemoryError,
    NotImplementedError,
    RecursionError,
    SyntaxError,
    TypeError,
    ValueError,
    zlib.error,
)


def _lazy(module: str, function: str) -> Reader:
    """Return a reader that imports ``module`` of this package when it reads its first file."""

    def read(path: Path) -> Iterator[Section]:
        reader: Reader = getattr(import_module(f".{module}", __name__), function)
        return reader(path)

    return read


READERS: dict[str, Reader] = {
    ".csv": _lazy("table", "read_csv"),
    ".docx": _lazy("word", "read_docx"),
    ".htm": _lazy("web", "read_html"),
    ".html": _lazy("web", "read_html"),
    ".markdown": _lazy("markdown", "read_markdown"),
    ".md": _lazy("markdown", "read_markdown"),
    ".pdf": _lazy("pdf", "read_pdf"),
    ".txt": _lazy("plain", "read_text"),
}


def read(path: Path, readers: Mapping[str, Reader] = READERS) -> Iterator[Section]:
    """Yield the sections of the document at ``path``.

    :param readers: reader per lower-case suffix.
    :raises DataError: if the file is damaged, encrypted, too large for its format or has no text.
    """
    try:
        for section in readers[path.suffix.lower()](path):
            if section.text.strip():
                yield _clean(section)
    except GlmkitError:
        raise
    except OSError as error:
        raise DataError(f"cannot be read: {error.strerror or error}") from error
    except _PARSER_FAULTS as error:
        raise DataError(f"damaged or not a {path.suffix.lower()} file: {_brief(error)}") from error


def _brief(error: BaseException) -> str:
    text = str(error).strip().splitlines()
    return f"{type(error).__name__}: {text[0][:120]}" if text else type(error).__name__


def _clean(section: Section) -> Section:
    """Drop what neither SQLite nor UTF-8 can hold: NUL characters and lone surrogates."""
    text = section.text
    if text.isascii() and "\0" not in text:
        return section
    sound = text.replace("\0", "").encode("utf-8", "replace").decode("utf-8")
    headings = tuple(
        each.replace("\0", "").encode("utf-8", "replace").decode("utf-8")
        for each in section.headings
    )
    return replace(section, text=sound, headings=headings)
