"""Reading one JSON array that fills a file, an element at a time: memory stays flat."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

from ..errors import DataError

_BLOCK = 1 << 18
_LONGEST = 64 << 20
"""Bytes of an element: a quote or bracket that is never closed would swallow the whole file."""
_BOM = b"\xef\xbb\xbf"
_OUTSIDE = re.compile(rb'["\[\]{},]')
_INSIDE = re.compile(rb'["\\]')


def is_array(path: Path) -> bool:
    """Tell whether a file of JSON begins as an array does."""
    with path.open("rb") as file:
        if file.read(len(_BOM)) != _BOM:
            file.seek(0)
        for block in iter(lambda: file.read(_BLOCK), b""):
            if block.strip():
                return block.lstrip().startswith(b"[")
    return False


def elements(file: BinaryIO, path: Path) -> Iterator[bytes]:
    """Yield the text of each element of the array that a file holds, well-formed or not.

    :param path: what errors call the file.
    :raises DataError: if the array never ends, or is not all that there is.
    """
    array = _Array(path)
    for block in iter(lambda: file.read(_BLOCK), b""):
        yield from array.take(block)
    array.end()


class _Array:
    """Finds where elements end; only brackets, commas and quotes matter for that."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._text = bytearray()
        self._at = self._start = 0
        """Where to look on, and where the element begins."""
        self._depth, self._count = 0, 0
        self._quoted = self._closed = False

    def take(self, block: bytes) -> Iterator[bytes]:
        """Yield the elements that end in the next piece of the file."""
        del self._text[: self._start]
        self._at -= self._start
        self._start = 0
        self._text += block
        while found := self._sign():
            self._at = found.end()
            if self._ends(found[0]):
                element = bytes(self._text[self._start : found.start()])
                self._start = self._at
                if self._depth or self._count or element.strip():
                    self._count += 1
                    yield element
        self._at = max(self._at, len(self._text))
        self._check()

    def _sign(self) -> re.Match[bytes] | None:
        """Return the next sign that matters; none after the array."""
        signs = _INSIDE if self._quoted else _OUTSIDE
        return None if self._closed else signs.search(self._text, self._at)

    def _ends(self, sign: bytes) -> bool:
        """Take a sign into account; tell whether it ends an element."""
        if self._quoted:
            self._quoted = sign != b'"'
            self._at += sign == b"\\"  # whatever it escapes, in this piece or the next
        elif sign == b'"':
            self._quoted = True
        elif sign in b"[{":
            self._depth += 1
            self._start = self._at if self._depth == 1 else self._start
        elif sign in b"]}":
            self._depth -= 1
            self._closed = self._depth == 0
            return self._closed
        return sign == b"," and self._depth == 1 and not self._quoted

    def _check(self) -> None:
        if self._closed and self._text[self._start :].strip():
            raise DataError(
                f"{self._path} holds more than the JSON array that it begins with: something "
                f"comes after its element {self._count}; correct that, or write JSON lines"
            )
        if len(self._text) - self._start > _LONGEST:
            raise self._endless(f"is longer than {_LONGEST >> 20} MiB")

    def end(self) -> None:
        """Look whether all was closed.

        :raises DataError: if not.
        """
        if not self._closed:
            raise self._endless("never ends")

    def _endless(self, what: str) -> DataError:
        return DataError(
            f"{self._path}, element {self._count + 1} of the JSON array {what}; a quote or "
            "bracket there may not be closed, or the file is cut short: correct it"
        )
