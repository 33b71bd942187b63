"""Chunking: sections of a document become pieces of about the length that an encoder reads well.

Length is measured in bytes of UTF-8: a multilingual vocabulary spends about one token on four of
them (3.9 measured with multilingual-e5 on Chinese prose, 3.9 on English), so that :data:`BUDGET` is
some 230 tokens, which is 300 Chinese characters or 900 English ones.

Sentences are the units: a piece ends where a sentence does, unless one sentence is longer than the
budget. Lines of lists and tables count as sentences. Everything here is linear in the text.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import groupby
from typing import NamedTuple

from .readers import Section

BUDGET = 900
"""Most bytes of UTF-8 in a piece."""
_RECORD_BUDGETS = 1.5
"""A record (a row, a question with its answer) may take this many budgets before it is divided:
some 350 tokens, which encoders with room for 512 still read to the end."""
_SMALL = 4
"""A rest below one fourth of the budget is joined with the piece before it, both re-divided."""
_WRAPPED_CHARS = 50
"""A line this long that ends inside a sentence was wrapped by an editor."""

# The end of a sentence with the quotes that close after it and the space up to the next one, or a
# line end. A full stop, ! or ? of ASCII ends nothing inside a word, a number or an address.
_BREAK = re.compile(
    r"""(?: [。！？；…]+ | [.!?]+ (?= ["'”’」』）)\]]* (?: \s | $ | [\u2e80-\uffef] ) ) )
        ["'”’」』）)\]]* \s*
      | \n \s*""",
    re.VERBOSE,
)
_ABBREVIATION = re.compile(
    r"""(?: ^ | [\s("'“‘] )
        (?: [A-Za-z] | (?:[A-Za-z]\.)+[A-Za-z] | Mrs? | Ms | Drs? | Prof | Sr | Jr | St | Mt | Gen
          | etc | vs | cf | al | approx | ca | Inc | Ltd | Co | Corp | Dept | Univ | est
          | Jan | Feb | Mar | Apr | Aug | Sept? | Oct | Nov | Dec | \d{1,3} ) $""",
    re.VERBOSE,
)
# These are ordinary words, or ends, unless a number follows.
_BEFORE_NUMBER = re.compile(r"""(?:^|[\s("'“‘])(?:[Nn]os?|pp?|Figs?|Eqs?|Sec|Ch|Vol|ed)$""")
_MARKED_LINE = re.compile(r"[-*+•·|>#]|\d{1,3}[.)、]|[(（]?[一二三四五六七八九十]{1,3}[)）、.]")
_CUT_AFTER = re.compile(r"[,，、:：;)）\]】]\s*|\s+")


@dataclass(frozen=True)
class Piece:
    """A chunk of a document: what is embedded, found and cited."""

    text: str
    """The document's own text, white space at the ends removed."""
    headings: tuple[str, ...] = ()
    line: int | None = None
    page: int | None = None
    last_page: int | None = None
    place: str = ""

    @property
    def heading(self) -> str:
        """The heading path in one line: ``"Rivers > Nile"``."""
        return " > ".join(self.headings)

    @property
    def location(self) -> str:
        """Where this is, for a person: ``"Rivers > Nile, line 12"``, ``"page 3"``."""
        return ", ".join(part for part in (self.heading, self._point) if part)

    @property
    def embedded(self) -> str:
        """What the encoder reads: the heading path and the text."""
        return f"{self.heading}\n{self.text}" if self.headings else self.text

    @property
    def _point(self) -> str:
        if self.place:
            return self.place
        if self.page is not None:
            several = self.last_page is not None and self.last_page != self.page
            return f"pages {self.page}-{self.last_page}" if several else f"page {self.page}"
        return f"line {self.line}" if self.line is not None else ""


class _Unit(NamedTuple):
    """A sentence, or a line of a list or table, with the white space after it."""

    text: str
    size: int
    line: int | None
    page: int | None
    place: str


def chunk(sections: Iterable[Section], *, budget: int = BUDGET) -> Iterator[Piece]:
    """Divide and merge sections into pieces.

    Neighbouring sections under one heading path are treated as one text; a piece never spans two
    heading paths. It may span two pages where it would be less than half full otherwise.

    :param budget: most bytes of UTF-8 in a piece, 100 or more; half as many again in a record.
    """
    for (headings, whole), group in groupby(sections, lambda each: (each.headings, each.whole)):
        for units in _records(group, budget) if whole else _pack(_units(group, budget), budget):
            piece = _piece(units, headings)
            # Rules and empty table borders say nothing.
            if any(character.isalnum() for character in piece.text):
                yield piece


def sentences(text: str) -> list[str]:
    """Divide a text into sentences (and lines of lists and tables), white space stripped."""
    return [text[start:end].strip() for start, end in spans(text)]


def spans(text: str) -> Iterator[tuple[int, int]]:
    """Yield start and end of each sentence; together they cover all but leading white space."""
    start = len(text) - len(text.lstrip())
    for found in _BREAK.finditer(text, start):
        if found.end() > start and _ends_sentence(text, start, found):
            yield start, found.end()
            start = found.end()
    if start < len(text):
        yield start, len(text)


def _ends_sentence(text: str, start: int, found: re.Match[str]) -> bool:
    first = text[found.start()]
    if first == "\n":
        return _ends_line(text, start, found)
    following = text[found.end() : found.end() + 1]
    if "\n" in found[0] and _MARKED_LINE.match(text, found.end()):
        return True
    if following.islower() and first in ".!?":
        return False
    if first != "." or text.startswith("..", found.start()):
        return True
    before = text[max(start, found.start() - 12) : found.start()]
    if following.isdigit() and _BEFORE_NUMBER.search(before):
        return False
    return not _ABBREVIATION.search(before)


def _ends_line(text: str, start: int, found: re.Match[str]) -> bool:
    """Tell a real line end from one that an editor put inside a sentence of Latin script."""
    at = found.start()
    wrapped = (
        found[0].count("\n") == 1
        and at - max(start, text.rfind("\n", start, at) + 1) >= _WRAPPED_CHARS
        and text[at - 1].isascii()
        and text[at - 1] not in ":|"
        and not _MARKED_LINE.match(text, found.end())
    )
    return not wrapped


def _units(sections: Iterable[Section], budget: int) -> Iterator[_Unit]:
    for section in sections:
        line = section.line
        counted = 0
        for start, end in spans(section.text):
            for cut_start, cut_end in _within(section.text, start, end, budget):
                if line is not None:
                    line += section.text.count("\n", counted, cut_start)
                    counted = cut_start
                yield _unit(section, section.text[cut_start:cut_end], line, end)


def _unit(section: Section, text: str, line: int | None, end: int) -> _Unit:
    if end == len(section.text) and not text.endswith("\n"):
        text += "\n"
    return _Unit(text, _size(text), line, section.page, section.place)


def _size(text: str) -> int:
    return len(text) if text.isascii() else len(text.encode("utf-8"))


def _within(text: str, start: int, end: int, budget: int) -> Iterator[tuple[int, int]]:
    """Cut an overlong sentence after a comma or space in the last half of each part, if any."""
    room = budget - 1
    while end - start > room or _size(text[start:end]) > room:
        window = text[start : min(end, start + room)]
        fits = len(window.encode("utf-8")[:room].decode("utf-8", "ignore"))
        cut = fits
        for found in _CUT_AFTER.finditer(window, fits // 2, fits):
            cut = found.end()
        yield start, start + cut
        start += cut
    if start < end:
        yield start, end


def _records(sections: Iterable[Section], budget: int) -> Iterator[list[_Unit]]:
    for section in sections:
        size = _size(section.text)
        if size <= _RECORD_BUDGETS * budget:
            yield [_Unit(section.text, size, section.line, section.page, section.place)]
        else:
            yield from _pack(_units([section], budget), budget)


def _pack(units: Iterable[_Unit], budget: int) -> Iterator[list[_Unit]]:
    """Fill pieces with units; each begins with the last sentence of the one before it."""
    done: list[_Unit] = []
    current: list[_Unit] = []
    size = repeated = 0
    for unit in units:
        turned = bool(current) and unit.page != current[-1].page and size >= budget // 2
        if current and (size + unit.size > budget or turned):
            if done:
                yield done
            done = current
            current = [] if turned else _overlap(current[-1], unit, budget)
            repeated = len(current)
            size = sum(each.size for each in current)
        current.append(unit)
        size += unit.size
    yield from _last_two(done, current, repeated, budget)


def _overlap(last: _Unit, following: _Unit, budget: int) -> list[_Unit]:
    fits = last.size <= budget // _SMALL and last.size + following.size <= budget
    return [last] if fits else []


def _last_two(
    done: list[_Unit], rest: list[_Unit], repeated: int, budget: int
) -> Iterator[list[_Unit]]:
    """Yield the last two pieces, evenly divided if the last one would be a crumb."""
    fresh = rest[repeated:]
    if done and sum(each.size for each in fresh) < budget // _SMALL and _same_page(done, fresh):
        units = done + fresh
        cut = _middle([each.size for each in units])
        done, rest = units[:cut], units[cut:]
    yield from (each for each in (done, rest) if each)


def _same_page(done: list[_Unit], fresh: list[_Unit]) -> bool:
    return done[-1].page == fresh[-1].page


def _middle(sizes: list[int]) -> int:
    """Return the cut that makes the longer of the two halves as short as possible."""
    total, before, best, cut = sum(sizes), 0, sum(sizes) + 1, 0
    for index, size in enumerate(sizes):
        longer = max(before, total - before)
        if longer < best:
            best, cut = longer, index
        before += size
    return cut


def _piece(units: list[_Unit], headings: tuple[str, ...]) -> Piece:
    first = units[0]
    text = "".join(each.text for each in units).strip()
    return Piece(text, headings, first.line, first.page, units[-1].page, first.place)
