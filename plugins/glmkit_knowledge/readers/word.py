"""Word documents (.docx): headings, paragraphs and tables in the order of the document."""

from __future__ import annotations

import re
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from glmkit import DataError

from . import Section

if TYPE_CHECKING:
    from docx.document import Document
    from docx.table import Table
    from docx.text.paragraph import Paragraph

MAX_UNPACKED_BYTES = 512 << 20
"""A docx is a zip file; one that unpacks to more than this isn't a document."""

_STYLE_LEVEL = re.compile(r"(?:heading|标题)\s*([1-9])$", re.IGNORECASE)


def read_docx(path: Path) -> Iterator[Section]:
    """Yield the text under each heading; paragraphs and table rows are lines.

    :raises DataError: if the file is no Word document, is encrypted or has no text.
    """
    outline: list[tuple[int, str]] = []
    held: list[str] = []
    start = count = 0
    for block in _blocks(_opened(path)):
        count += 1
        level, lines = _read_block(block)
        if level and lines:
            yield from _section(held, outline, start)
            held = []
            outline = [*(each for each in outline if each[0] < level), (level, lines[0][:200])]
        else:
            start = start if held else count
            held += lines
    yield from _section(held, outline, start)
    if not held and not outline:
        raise DataError("no text in it (only pictures?)")


def _section(held: list[str], outline: list[tuple[int, str]], start: int) -> Iterator[Section]:
    if held:
        place = f"paragraph {start}"
        yield Section("\n".join(held), tuple(title for _, title in outline), place=place)


def _opened(path: Path) -> Document:
    import docx
    from docx.opc.exceptions import PackageNotFoundError

    try:
        with zipfile.ZipFile(path) as archive:
            unpacked = sum(each.file_size for each in archive.infolist())
        if unpacked > MAX_UNPACKED_BYTES:
            raise DataError(f"unpacks to {unpacked >> 20} MiB; that is no document")
        return docx.Document(str(path))
    except (zipfile.BadZipFile, PackageNotFoundError) as error:
        raise DataError("damaged, encrypted or no Word document") from error


def _blocks(document: Document) -> Iterator[Paragraph | Table]:
    """Yield paragraphs and tables in order, also those inside content controls."""
    from docx.oxml.ns import qn
    from docx.table import Table
    from docx.text.paragraph import Paragraph

    containers = {qn("w:sdt"), qn("w:sdtContent"), qn("w:ins"), qn("w:smartTag")}
    stack: list[Any] = list(reversed(document.element.body))
    while stack:
        element = stack.pop()
        if element.tag == qn("w:p"):
            yield Paragraph(element, document._body)
        elif element.tag == qn("w:tbl"):
            yield Table(element, document._body)
        elif element.tag in containers:
            stack.extend(reversed(element))


def _read_block(block: Paragraph | Table) -> tuple[int, list[str]]:
    """Return heading level (0 for text) and the lines of a paragraph or table."""
    from docx.text.paragraph import Paragraph

    if not isinstance(block, Paragraph):
        return 0, [line for row in block.rows if (line := _row(row))]
    text = block.text.strip()
    if not text:
        return 0, []
    level = _level(block)
    listed = block._p.pPr is not None and block._p.pPr.numPr is not None
    return level, [f"- {text}" if listed and not level else text]


def _level(paragraph: Paragraph) -> int:
    style = paragraph.style
    name = (style.name or "") if style is not None else ""
    if name in ("Title", "标题"):
        return 1
    found = _STYLE_LEVEL.match(name)
    # A title stands above headings of the first level.
    return int(found[1]) + 1 if found else 0


def _row(row: Any) -> str:  # noqa: ANN401
    cells: list[str] = []
    last = None
    for cell in row.cells:
        # A merged cell is listed once for every column that it spans.
        if cell._tc is not last:
            cells.append(" ".join(cell.text.split()))
        last = cell._tc
    return " | ".join(cells) if any(cells) else ""
