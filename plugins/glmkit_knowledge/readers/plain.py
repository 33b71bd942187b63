"""Plain text, and what all text formats share: encodings and blocks of lines."""

from __future__ import annotations

import codecs
from collections.abc import Iterable, Iterator
from pathlib import Path

from glmkit import DataError

from . import Section

BLOCK_CHARS = 1 << 16
"""A block is handed on at the first blank line after this many characters..."""
_BLOCK_LIMIT = 4 * BLOCK_CHARS
"""...or at the first line end after this many."""
_LINE_LIMIT = 1 << 18
"""A longer line is taken in pieces, so that a file without line ends fits in memory."""
_SAMPLE_BYTES = 1 << 17
_BOMS = (
    (codecs.BOM_UTF8, "utf-8-sig"),
    (codecs.BOM_UTF32_LE, "utf-32"),
    (codecs.BOM_UTF32_BE, "utf-32"),
    (codecs.BOM_UTF16_LE, "utf-16"),
    (codecs.BOM_UTF16_BE, "utf-16"),
)
# gb18030 comes first: where several fit equally well, a Chinese text is more likely that.
_LEGACY = ["gb18030", "big5", "cp1252", "shift_jis", "euc_kr", "cp1251"]


def read_text(path: Path) -> Iterator[Section]:
    """Yield the text in blocks of about 64,000 characters, each with its first line."""
    for line, text in blocks(lines(path)):
        yield Section(text, line=line)


def lines(path: Path) -> Iterator[str]:
    """Yield the lines with plain line ends; an overlong line comes in pieces without one.

    :raises DataError: if the file is binary.
    """
    with path.open(encoding=encoding_of(path), errors="replace") as file:
        while piece := file.readline(_LINE_LIMIT):
            yield piece


def blocks(pieces: Iterable[str], first_line: int = 1) -> Iterator[tuple[int, str]]:
    """Group lines into blocks that end at a blank line where they can.

    :returns: pairs of the block's first line and its text.
    """
    held: list[str] = []
    size, start, line = 0, first_line, first_line
    for piece in pieces:
        held.append(piece)
        size += len(piece)
        line += piece.endswith("\n")
        if size >= BLOCK_CHARS and (not piece.strip() or size >= _BLOCK_LIMIT):
            yield start, "".join(held)
            held, size, start = [], 0, line
    if held:
        yield start, "".join(held)


def encoding_of(path: Path) -> str:
    """Find the encoding of a text file: byte order mark, UTF-8, then the likeliest older one.

    :raises DataError: if the file is binary.
    """
    with path.open("rb") as file:
        head = file.read(_SAMPLE_BYTES)
    for mark, name in _BOMS:
        if head.startswith(mark):
            return name
    if b"\0" in head:
        return _wide_encoding(head)
    odd_at = _first_not_utf8(path)
    if odd_at is None:
        return "utf-8"
    with path.open("rb") as file:
        file.seek(max(0, odd_at - 256))
        return legacy_encoding(file.read(_SAMPLE_BYTES))


def decode(data: bytes) -> str:
    """Decode bytes of unknown encoding; what does not fit becomes U+FFFD."""
    for mark, name in _BOMS:
        if data.startswith(mark):
            return data.decode(name, "replace")
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError as error:
        sample = data[max(0, error.start - 256) :][:_SAMPLE_BYTES]
        return data.decode(legacy_encoding(sample), "replace")


def _first_not_utf8(path: Path) -> int | None:
    """Return about where the file stops being UTF-8, in bytes; None if it never does."""
    decoder = codecs.getincrementaldecoder("utf-8")()
    at = 0
    with path.open("rb") as file:
        try:
            while data := file.read(1 << 20):
                decoder.decode(data)
                at += len(data)
            decoder.decode(b"", final=True)
        except UnicodeDecodeError as error:
            return at + error.start
    return None


def _wide_encoding(head: bytes) -> str:
    """Tell UTF-16 without a mark from binary: half of its ASCII characters' bytes are zero."""
    even, odd = head[0::2].count(0), head[1::2].count(0)
    name = "utf-16-le" if odd > even else "utf-16-be"
    text = head[: len(head) // 2 * 2].decode(name, "replace")
    if max(even, odd) > 8 * min(even, odd) and "\0" not in text and text.count("\ufffd") <= 1:
        return name
    raise DataError("binary, not text")


def legacy_encoding(sample: bytes) -> str:
    """Return the likeliest encoding of bytes that are not UTF-8."""
    from charset_normalizer import from_bytes

    best = from_bytes(sample, cp_isolation=_LEGACY, threshold=0.4).best()
    if best is not None:
        return best.encoding
    for name in _LEGACY:
        try:
            codecs.getincrementaldecoder(name)().decode(sample)
        except UnicodeDecodeError:
            continue
        return name
    return "gb18030"
