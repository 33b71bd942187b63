"""Markdown, line by line: the text stays as it is, the headings become its path."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from . import Section
from .plain import blocks, lines

_ATX = re.compile(r" {0,3}(#{1,6})(?:[ \t]+(.*?))?(?:[ \t]+#+)?[ \t]*$")
_FENCE = re.compile(r" {0,3}(`{3,}|~{3,})(.*)")
_SETEXT = re.compile(r" {0,3}(=+|-+)[ \t]*$")
# A line that a row of dashes below it cannot turn into a heading.
_NOT_PARAGRAPH = re.compile(r"\s*([-*+>|]|\d+[.)]\s|#|$)|\t| {4}")
_MARKUP = re.compile(r"!?\[([^\]]*)\]\([^)]*\)|[*`]+|(?<!\w)_+|_+(?!\w)")
_DATA_URI = re.compile(r"data:[\w/+.;-]*;base64,[A-Za-z0-9+/=]+")


@dataclass
class _Outline:
    """The headings that hold at one line."""

    levels: list[tuple[int, str]] = field(default_factory=list)

    def enter(self, level: int, title: str) -> None:
        while self.levels and self.levels[-1][0] >= level:
            self.levels.pop()
        self.levels.append((level, title))

    @property
    def path(self) -> tuple[str, ...]:
        return tuple(title for _, title in self.levels if title)


def read_markdown(path: Path) -> Iterator[Section]:
    """Yield the text under each heading; a heading with nothing under it is text itself."""
    outline = _Outline()
    heading: tuple[int, int, str] | None = None
    for line, level, body in _parts(lines(path)):
        if level == 0:
            heading = heading if not "".join(body).strip() else None
            for start, text in blocks(body, line):
                yield Section(text, outline.path, start)
            continue
        if heading is not None and heading[1] >= level:
            yield _bare(outline, heading)
        outline.enter(level, body[0])
        heading = (line, level, body[0])
    if heading is not None:
        yield _bare(outline, heading)


def _bare(outline: _Outline, heading: tuple[int, int, str]) -> Section:
    line, _, title = heading
    return Section(title, outline.path[:-1] if title else outline.path, line)


def _parts(source: Iterator[str]) -> Iterator[tuple[int, int, list[str]]]:
    """Split lines into headings (line, level 1..6, [title]) and bodies (line, 0, lines)."""
    body: list[str] = []
    start, fence = 1, ""
    number = 0
    for number, raw in enumerate(_whole_lines(source), 1):
        text = raw if len(raw) < 2000 else _DATA_URI.sub("data:", raw)
        # Front matter is fenced by --- from the first line on.
        before, fence = fence, _front_matter(number, text) or _next_fence(fence, text)
        found = None if before or fence else _heading(text, body)
        if found is None:
            body.append(text)
            continue
        level, title, setext = found
        if setext:
            body.pop()
        if body:
            yield start, 0, body
        yield number - setext, level, [_plain(title)]
        body, start = [], number + 1
    if body:
        yield start, 0, body


def _whole_lines(source: Iterator[str]) -> Iterator[str]:
    """Join the pieces of overlong lines."""
    held: list[str] = []
    for piece in source:
        held.append(piece)
        if piece.endswith("\n"):
            yield "".join(held)
            held = []
    if held:
        yield "".join(held)


def _front_matter(number: int, text: str) -> str:
    return "---" if number == 1 and text.rstrip() == "---" else ""


def _next_fence(fence: str, text: str) -> str:
    """Return the fence that is open after this line, "" for none."""
    if fence == "---":
        # A blank line ends it too: a rule on the first line must not swallow the document.
        return "" if text.rstrip() in ("---", "...", "") else fence
    found = _FENCE.match(text)
    if found is None:
        return fence
    marks, rest = found.groups()
    if not fence:
        return "" if marks[0] == "`" and "`" in rest else marks
    closes = marks[0] == fence[0] and len(marks) >= len(fence) and not rest.strip()
    return "" if closes else fence


def _heading(text: str, body: list[str]) -> tuple[int, str, int] | None:
    """Return level, title and whether the title is the line before (setext)."""
    line = text.rstrip("\n")
    if found := _ATX.match(line):
        return len(found[1]), found[2] or "", 0
    if (found := _SETEXT.match(line)) and body and not _NOT_PARAGRAPH.match(body[-1]):
        return (1 if found[1][0] == "=" else 2), body[-1].strip(), 1
    return None


def _plain(title: str) -> str:
    """Strip links and emphasis from a heading."""
    return _MARKUP.sub(lambda match: match[1] or "", title).strip()[:200]
