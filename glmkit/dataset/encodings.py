"""What encoding a file of text is in, where it is not the one that it should be."""

from __future__ import annotations

import codecs
from pathlib import Path

from ..errors import DataError

_HEAD = 1 << 22
_MARKS = (
    (codecs.BOM_UTF32_LE, "UTF-32"),
    (codecs.BOM_UTF32_BE, "UTF-32"),
    (codecs.BOM_UTF16_LE, "UTF-16"),
    (codecs.BOM_UTF16_BE, "UTF-16"),
)
_GUESSES = (("gb18030", "GB18030"), ("big5", "BIG5"), ("shift_jis", "SHIFT-JIS"))


def check_encoding(path: Path) -> None:
    """Refuse a file of text that is not in UTF-8.

    Single lines that are damaged are no reason: those are rows that cannot be read.

    :raises DataError: naming the encoding that it seems to be in.
    """
    with path.open("rb") as file:
        head = file.read(_HEAD)
    other = _other(head)
    if other is not None:
        raise DataError(
            f"{path} is not in UTF-8, but seems to be in {other}; "
            f"run: iconv -f {other} -t UTF-8 {path.name} > utf8-{path.name}"
        )


def _other(head: bytes) -> str | None:
    marked = next((name for mark, name in _MARKS if head.startswith(mark)), None)
    if marked is not None or _decodes(head, "utf-8"):
        return marked
    lines = [each for each in head.split(b"\n") if not each.isascii()]
    whole = lines[:-1] or lines  # the last may be cut
    if any(_decodes(each, "utf-8") for each in whole):
        return None
    return next((name for codec, name in _GUESSES if _decodes(head, codec)), None)


def _decodes(data: bytes, codec: str) -> bool:
    """Tell whether bytes are text in an encoding; they may end inside a character."""
    try:
        codecs.getincrementaldecoder(codec)().decode(data)
    except UnicodeDecodeError:
        return False
    return True
