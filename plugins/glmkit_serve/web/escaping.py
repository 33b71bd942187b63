"""What models and documents say, as the page may show it: text, never markup of the page."""

from __future__ import annotations

import html
import re
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from glmkit import Passage

    from .words import Words

_FENCE = re.compile(r" {0,3}(`{3,}|~{3,})")
_INNER = re.compile(r" {0,3}(?:[-*+]|\d{1,9}[.)]|>)")
"""What begins an item of a list or a quotation: within one, other lines are indented code."""
# Code between equal runs of backticks, within one paragraph.
_SPAN = re.compile(r"(?<!`)(`+)(?!`)(?:(?!\n[ \t]*\n).)+?(?<!`)\1(?!`)", re.DOTALL)
_SPOT = re.compile(r"\b(line|pages?) (\d+(?:-\d+)?)$")
"""Where in a document, as documents are read: the one part of a location that is no heading."""
_SHOWN_PATH = 80


def as_markdown(text: str) -> str:
    """Return a model's Markdown without HTML and pictures; code stays as it is.

    A picture in an answer would be fetched by the browser from wherever the answer says.
    """
    return "".join(part if code else _outside_spans(part) for part, code in _parts(text))


def closed(text: str) -> str:
    """Return Markdown after which anything may follow: fenced code that is open is closed."""
    fence = ""
    for _, fence in _lines(text):  # noqa: B007 -- the last one counts
        pass
    return f"{text.rstrip()}\n{fence}" if fence else text


def _parts(text: str) -> Iterator[tuple[str, bool]]:
    """Yield the text in order, fenced and indented code apart; an open fence reaches to the end."""
    held: list[str] = []
    before = False
    for line, code in _marked(text):
        if code != before:
            yield "".join(held), before
            held, before = [], code
        held.append(line)
    yield "".join(held), before


def _marked(text: str) -> Iterator[tuple[str, bool]]:
    """Yield lines and whether each is code.

    Indented lines are code only where nothing above them can have another meaning for them: in
    lists and quotations they are taken for text, which shows ``&lt;`` rather than obeys a tag.
    """
    fenced, blank, within = "", True, False
    for line, fence in _lines(text):
        if fenced or fence:
            yield line, True
            fenced, blank = fence, False
            continue
        if not line.strip():
            yield line, False
            blank = True
            continue
        indented = line.startswith(("    ", "\t"))
        code = indented and blank and not within
        yield line, code
        if not indented:
            within = bool(_INNER.match(line)) or (within and not (blank and line[0] != " "))
        blank = code


def _lines(text: str) -> Iterator[tuple[str, str]]:
    """Yield lines, each with the fence of code that is open after it; empty: none."""
    fence = ""
    for line in text.splitlines(keepends=True):
        found = _FENCE.match(line)
        if not fence:
            fence = found[1] if found else ""
        elif found and found[1].startswith(fence) and not line.strip(" `~\r\n"):
            fence = ""
        yield line, fence


def _outside_spans(text: str) -> str:
    parts: list[str] = []
    at = 0
    for span in _SPAN.finditer(text):
        parts += [_defused(text[at : span.start()]), span[0]]
        at = span.end()
    return "".join(parts) + _defused(text[at:])


def _defused(text: str) -> str:
    text = text.replace("&", "&amp;").replace("<", "&lt;")
    return text.replace("![", "!\\[")


def as_text(text: str) -> str:
    """Return plain text as HTML of one line, which Markdown leaves alone.

    Line ends become references: an empty line would end a block of HTML in Markdown.
    """
    return html.escape(text).replace("\r", "").replace("\n", "&#10;")


def sources_html(passages: Sequence[Passage], words: Words) -> str:
    """Return passages as a list in which each opens; empty where there are none."""
    if not passages:
        return ""
    items = "".join(_source(number, each, words) for number, each in enumerate(passages, 1))
    head = as_text(words("sources"))
    return f'\n\n<div class="sources"><p class="sources-head">{head}</p>{items}</div>'


def _source(number: int, passage: Passage, words: Words) -> str:
    location = _SPOT.sub(lambda found: _spot(found[1], found[2], words), passage.location)
    place = ", ".join(each for each in (_short(passage.path), location) if each)
    score = words("score", score=f"{passage.score:.2f}")
    return (
        f'<details class="source"><summary><b>[{number}]</b> {as_text(place)} '
        f'<span class="score">{as_text(score)}</span></summary>'
        f'<div class="passage">{as_text(passage.text.strip())}</div></details>'
    )


def _spot(kind: str, at: str, words: Words) -> str:
    if kind == "line":
        return words("line", at=at)
    return words("page", at=at) if kind == "page" else words("pages", at=at)


def _short(path: str) -> str:
    return path if len(path) <= _SHOWN_PATH else "…" + path[-_SHOWN_PATH:]
