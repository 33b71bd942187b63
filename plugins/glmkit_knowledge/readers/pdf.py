"""PDF files, page by page."""

from __future__ import annotations

import logging
import re
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from glmkit import DataError

from . import _PARSER_FAULTS, Section

if TYPE_CHECKING:
    from pypdf import PageObject, PdfReader

MAX_PAGES = 5000

_ENDS = tuple("。！？；：.!?;:…”」』）)")
_WIDE = re.compile(r"[\u2e80-\u9fff\uf900-\ufaff\uff00-\uffef]")
_HYPHEN = re.compile(r"[A-Za-z]{2}-$")


def read_pdf(path: Path) -> Iterator[Section]:
    """Yield one section per page that has text.

    :raises DataError: if the file is damaged, needs a password, has more than 5,000 pages or holds
        no text at all, as a scan does.
    """
    from pypdf.errors import PyPdfError

    found = False
    with _quiet(), path.open("rb") as file:
        try:
            reader = _opened(file)
            for number, page in enumerate(reader.pages, 1):
                text = _page_text(page)
                found = found or bool(text)
                yield Section(text, page=number)
        except PyPdfError as error:
            raise DataError(f"damaged PDF: {error}") from error
        if not found:
            pages = len(reader.pages)
            raise DataError(f"no text in its {pages} page(s), a scan? run OCR on it first")


def _opened(file: object) -> PdfReader:
    from pypdf import PdfReader
    from pypdf.errors import DependencyError, FileNotDecryptedError, WrongPasswordError

    reader = PdfReader(file, strict=False)  # type: ignore[arg-type]
    try:
        # Many PDFs are encrypted with an empty password: they open for everybody.
        if reader.is_encrypted and not reader.decrypt(""):
            raise DataError("encrypted PDF; save a copy without its password")
        pages = len(reader.pages)
    except (DependencyError, FileNotDecryptedError, WrongPasswordError) as error:
        raise DataError("encrypted PDF; save a copy without its password") from error
    if pages > MAX_PAGES:
        raise DataError(f"a PDF of {pages} pages; up to {MAX_PAGES} are read: split it")
    return reader


def _page_text(page: PageObject) -> str:
    """Return the page's text; one broken page doesn't cost the others."""
    from pypdf.errors import PyPdfError

    try:
        return unwrap(page.extract_text())
    except (PyPdfError, *_PARSER_FAULTS):
        return ""


def unwrap(text: str) -> str:
    """Join the lines that end because the page was full, not because the paragraph was.

    Only white space changes (and the hyphen of an English word divided between two lines).
    """
    lines = [line.strip() for line in text.splitlines()]
    widths = sorted(_width(line) for line in lines if line)
    # Most lines of a full paragraph are about this wide; a few (titles, columns joined) are wider.
    full = 0.75 * widths[len(widths) * 4 // 5] if widths else 0
    out: list[str] = []
    before = ""
    for line in lines:
        if before and line and _goes_on(before, line, full):
            out[-1] = _joined(out[-1], line)
        else:
            out.append(line)
        before = line
    return "\n".join(out).strip()


def _width(line: str) -> int:
    return len(line) + len(_WIDE.findall(line))


def _goes_on(before: str, line: str, full: float) -> bool:
    return _width(before) >= full and not before.endswith(_ENDS) and line[0] not in "-•*·"


def _joined(before: str, line: str) -> str:
    if _WIDE.match(before[-1]) or _WIDE.match(line[0]):
        return before + line
    if _HYPHEN.search(before) and line[0].islower():
        return before[:-1] + line
    return f"{before} {line}"


@contextmanager
def _quiet() -> Iterator[None]:
    """Keep pypdf's remarks about sloppy files off the terminal."""
    logger = logging.getLogger("pypdf")
    level = logger.level
    logger.setLevel(logging.CRITICAL)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(level)
