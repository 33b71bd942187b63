"""HTML pages: headings, paragraphs, lists and tables, without the page's furniture."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from glmkit import DataError

from . import Section
from .plain import decode

if TYPE_CHECKING:
    from bs4 import BeautifulSoup
    from bs4.element import PageElement, Tag

MAX_BYTES = 16 << 20
"""A page's tree takes some twenty times the memory of its file."""

_SKIPPED = frozenset(
    "script style nav noscript template footer aside svg iframe head button select object".split()
)
_BLOCKS = frozenset(
    "address article blockquote body dd details div dl dt fieldset figcaption figure form header hr"
    " li main ol p pre section summary table tbody tfoot thead tr ul br".split()
)
_LEVELS = {f"h{level}": level for level in range(1, 7)}
_CHARSET = re.compile(rb"""charset\s*=\s*["']?\s*([\w-]+)""", re.IGNORECASE)
_CHINESE_CHARSETS = frozenset({"gb2312", "gb_2312-80", "gbk", "x-gbk", "gb18030"})


def read_html(path: Path) -> Iterator[Section]:
    """Yield the text under each heading; skip scripts, styles, navigation and hidden elements.

    :raises DataError: if the file is larger than 16 MiB.
    """
    size = path.stat().st_size
    if size > MAX_BYTES:
        raise DataError(
            f"an HTML page of {size >> 20} MiB; up to {MAX_BYTES >> 20} MiB are read: split it"
        )
    yield from _Page(_soup(path.read_bytes())).sections()


def _soup(data: bytes) -> BeautifulSoup:
    from bs4 import BeautifulSoup

    return BeautifulSoup(_decoded(data), "lxml")


def _decoded(data: bytes) -> str:
    """Decode by the page's own charset where it names one that exists."""
    named = _CHARSET.search(data[:2048])
    if named is None or data[:3] == b"\xef\xbb\xbf":
        return decode(data)
    name = named[1].decode("ascii").lower()
    # Pages say gb2312 and use characters of its successors.
    name = "gb18030" if name in _CHINESE_CHARSETS else name
    try:
        return data.decode(name)
    except (LookupError, UnicodeDecodeError):
        return decode(data)


class _Page:
    """One walk over a page in document order; no recursion, pages nest as deep as they like."""

    def __init__(self, soup: BeautifulSoup) -> None:
        self._root = soup.body or soup
        title = soup.title.get_text(" ", strip=True) if soup.title else ""
        self._path: list[tuple[int, str]] = [(0, title)] if title and not soup.h1 else []
        self._text: list[str] = []

    def sections(self) -> Iterator[Section]:
        stack: list[Iterator[PageElement]] = [iter(self._root.children)]
        closing: list[str] = [""]
        while stack:
            node = next(stack[-1], None)
            if node is None:
                stack.pop()
                self._break(closing.pop())
            elif level := _LEVELS.get(getattr(node, "name", None) or ""):
                yield from self._flush()
                self._enter(level, " ".join(node.get_text(" ", strip=True).split()))
            elif children := self._visit(node):
                stack.append(children)
                closing.append(getattr(node, "name", ""))
        yield from self._flush()

    def _visit(self, node: PageElement) -> Iterator[PageElement] | None:
        """Take the node's text, or return its children to walk."""
        from bs4.element import NavigableString, PreformattedString, Tag

        if isinstance(node, NavigableString):
            if not isinstance(node, PreformattedString):
                self._say(node)
        elif isinstance(node, Tag) and not _hidden(node):
            self._break(node.name)
            if node.name == "tr" and not node.find(["table", *_LEVELS]):
                self._text.append(_row(node) + "\n")
            elif node.name == "pre":
                self._text.append(node.get_text().strip("\n") + "\n")
            else:
                if node.name == "li":
                    self._text.append("- ")
                return iter(node.children)
        return None

    def _say(self, text: str) -> None:
        words = re.sub(r"\s+", " ", text)
        if words.strip() or (self._text and not self._text[-1].endswith((" ", "\n"))):
            self._text.append(words)

    def _break(self, name: str) -> None:
        if name in _BLOCKS and self._text and not self._text[-1].endswith(("\n", "- ")):
            self._text.append("\n")

    def _enter(self, level: int, title: str) -> None:
        while self._path and self._path[-1][0] >= level:
            self._path.pop()
        if title:
            self._path.append((level, title[:200]))

    def _flush(self) -> Iterator[Section]:
        lines = (line.strip(" ") for line in "".join(self._text).split("\n"))
        text = "\n".join(line for line in lines if line and line != "-")
        self._text = []
        if text:
            yield Section(text, tuple(title for _, title in self._path))


def _hidden(node: Tag) -> bool:
    style = str(node.get("style") or "").replace(" ", "").lower()
    return (
        node.name in _SKIPPED
        or node.has_attr("hidden")
        or node.get("aria-hidden") == "true"
        or "display:none" in style
    )


def _row(row: Tag) -> str:
    cells = row.find_all(["td", "th"])
    return " | ".join(" ".join(cell.get_text(" ", strip=True).split()) for cell in cells)
