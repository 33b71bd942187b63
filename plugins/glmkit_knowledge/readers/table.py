"""CSV tables: each row is a record of ``header: value`` lines."""

from __future__ import annotations

import csv
import re
from collections.abc import Iterator, Sequence
from itertools import chain
from pathlib import Path

from glmkit import DataError

from . import Section
from .plain import lines

_CELL_LIMIT = 1 << 24
_SAMPLE_CHARS = 1 << 14
_LONG_ROW = 300
"""Rows longer than this may be divided; they get a heading so that each part says what it is."""
_TITLE_CHARS = 120
_NUMBER = re.compile(r"[-+]?[\d.,:/%\s-]+$")


def read_csv(path: Path) -> Iterator[Section]:
    """Yield one section per row; ``place`` is the row's number in a spreadsheet.

    :raises DataError: if the file is binary or no table.
    """
    try:
        yield from _records(lines(path))
    except csv.Error as error:
        raise DataError(f"damaged CSV: {error}") from error


def _records(source: Iterator[str]) -> Iterator[Section]:
    # A limit of the csv module as a whole, 128 kB unless raised.
    csv.field_size_limit(max(csv.field_size_limit(), _CELL_LIMIT))
    head = _take(source, _SAMPLE_CHARS)
    rows = csv.reader(chain(head, source), delimiter=_delimiter(head))
    names: Sequence[str] = ()
    for number, row in enumerate(rows, 1):
        cells = [cell.strip() for cell in row]
        if number == 1 and _is_header(cells):
            names = cells
        elif any(cells):
            text = _record(names, cells)
            title = _title(cells) if len(text) > _LONG_ROW else ""
            headings = (title,) if title else ()
            yield Section(text, headings, place=f"row {number}", whole=True)


def _take(source: Iterator[str], chars: int) -> list[str]:
    taken: list[str] = []
    size = 0
    for line in source:
        taken.append(line)
        size += len(line)
        if size >= chars:
            break
    return taken


def _delimiter(sample: Sequence[str]) -> str:
    """Return the separator that divides the first lines into equally many cells."""
    best, most = ",", 0
    for mark in ",\t;|":
        widths = [len(row) for row in csv.reader(sample[:50], delimiter=mark) if row]
        common = max(widths, key=widths.count, default=1)
        score = widths.count(common) * (common > 1)
        if score > most:
            best, most = mark, score
    return best


def _is_header(cells: Sequence[str]) -> bool:
    """Tell a row of column names: short, distinct, no numbers, no sentences."""
    named = [cell for cell in cells if cell]
    return (
        len(named) >= max(1, len(cells) - 1)
        and len(set(named)) == len(named)
        and all(len(name) <= 60 and "\n" not in name for name in named)
        and not any(_NUMBER.match(name) or name.endswith(tuple("。！？?!.")) for name in named)
        and not any("://" in name for name in named)
    )


def _record(names: Sequence[str], cells: Sequence[str]) -> str:
    out = []
    for index, cell in enumerate(cells):
        name = names[index] if index < len(names) else ""
        if cell and (name or not names):
            out.append(f"{name}: {cell}" if name else cell)
    return "\n".join(out)


def _title(cells: Sequence[str]) -> str:
    """Return the cell that says best what the row is about: the longest that is no number."""
    short = [cell for cell in cells if len(cell) <= _TITLE_CHARS and "\n" not in cell]
    return max((c for c in short if not _NUMBER.match(c) and "://" not in c), key=len, default="")
