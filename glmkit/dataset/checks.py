"""Looking data through for what would harm a training, before it begins."""

from __future__ import annotations

import hashlib
import json
import re
from collections import Counter
from collections.abc import Callable, Generator, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, NamedTuple

from ..errors import DataError
from ..tables.files import Place
from ..types import Message, Progress
from .columns import ColumnNames
from .data import over
from .info import Listing
from .samples import BadRow, Preference, Row, Sample, Verdict, compared
from .sources import Source, open_source
from .specs import wanted

Fault = Literal["file", "row", "contradiction", "duplicate", "overlong", "markup", "damaged text"]
_EVERY = 20_000
_MARKUP = re.compile(
    r"<\|(?:user|assistant|system|observation|im_start|im_end|endoftext)\|>|\[gMASK\]|<eop>|</?s>"
)
Measure = Callable[[Sample], int]
"""Returns the tokens of a sample; a DataError says why a model cannot read it."""


class Finding(NamedTuple):
    """Something that is wrong, or may be."""

    fault: Fault
    file: str
    place: Place | None
    """None where the whole file is meant."""
    reason: str

    @property
    def stops(self) -> bool:
        """Whether nothing can be trained with it; else it is a warning."""
        return self.fault in ("file", "row")

    def __str__(self) -> str:
        return self.reason if self.place is None else f"{self.file}, {self.place}: {self.reason}"


@dataclass
class Report:
    """What a check found."""

    files: list[str] = field(default_factory=list)
    """A line for each file that could be read: its format and its rows."""
    rows: int = 0
    samples: int = 0
    pairs: int = 0
    """Preferences among the samples."""
    longer: int = 0
    """Pairs whose better answer is the longer one, in characters."""
    verdicts: int = 0
    """Answers with a verdict among the samples."""
    desirable: int = 0
    """Those that are good."""
    findings: list[Finding] = field(default_factory=list)

    @property
    def counts(self) -> dict[str, int]:
        """How often each fault was found."""
        return dict(Counter(each.fault for each in self.findings))

    @property
    def good(self) -> bool:
        """Whether it can be trained on as it is."""
        return not any(each.stops for each in self.findings)


@dataclass(frozen=True)
class Longest:
    """What a sample may take."""

    measure: Measure
    tokens: int
    """At most."""


def check(
    specs: Sequence[str],
    *,
    dataset_dir: str | Path | None = None,
    columns: ColumnNames = ColumnNames(),  # noqa: B008
    longest: Longest | None = None,
) -> Generator[Progress, None, Report]:
    """Read data through and return all that is wrong with it; nothing of it stops the check.

    :param specs: as for :func:`glmkit.dataset.opening`.
    :raises DataError: if something does not exist.
    :raises UsageError: if nothing is named.
    """
    report, seen = Report(), _Seen()
    for each in wanted(specs, Listing.read(dataset_dir), None):
        try:
            source = open_source(each.path, over(each.names, columns), None)
            yield from _look_through(source, report, seen, longest)
        except DataError as error:
            report.findings.append(Finding("file", str(each.path), None, str(error)))
    return report


def _look_through(
    source: Source, report: Report, seen: _Seen, longest: Longest | None
) -> Generator[Progress, None, None]:
    rows = 0
    for rows, row in enumerate(source.read(), 1):
        report.rows += 1
        report.samples += not isinstance(row, BadRow)
        if isinstance(row, Preference):
            report.pairs += 1
            report.longer += len(row.chosen.content) > len(row.rejected.content)
        if isinstance(row, Verdict):
            report.verdicts += 1
            report.desirable += row.good
        report.findings += _faults(row, source.name, seen, longest)
        if rows % _EVERY == 0:
            yield Progress(f"checking {source.name}", rows)
    unit = {"preferences": "pairs", "verdicts": "answers"}.get(source.holds, "rows")
    report.files.append(f"{source.name}: {source.shape.name}, {rows:,} {unit}")


def _faults(
    row: Row | BadRow, file: str, seen: _Seen, longest: Longest | None
) -> Iterator[Finding]:
    if isinstance(row, BadRow):
        yield Finding("row", file, row.place, row.reason)
        return
    try:
        overlong = _overlong(row, longest)
    except DataError as error:
        yield Finding("row", file, row.place, str(error))
        return
    messages = _messages(row)
    said: dict[Fault, str] = {
        "contradiction": seen.contradiction(row),
        "duplicate": seen.duplicate(row),
        "overlong": overlong,
        "markup": _markup(messages),
        "damaged text": _damaged(messages),
    }
    for fault, reason in said.items():
        if reason:
            yield Finding(fault, file, row.place, reason)


def _messages(row: Row) -> tuple[Message, ...]:
    if isinstance(row, Preference):
        return (*row.conversations[0], row.rejected)
    return row.messages if isinstance(row, Sample) else row.conversation


class _Seen:
    """Remembers conversations by a digest of eight bytes."""

    def __init__(self) -> None:
        self._whole: dict[bytes, tuple[str, Place]] = {}

    def duplicate(self, row: Row) -> str:
        """Say where the same conversation, or pair, stood before; empty: nowhere."""
        if isinstance(row, Verdict):
            key, what = _key(row.conversation, row.good), "answer"
        else:
            what = "conversation" if isinstance(row, Sample) else "pair"
            key = _key(_messages(row))
        here = (row.source, row.place)
        file, place = self._whole.setdefault(key, here)
        if (file, place) == here:
            return ""
        return f"the same {what} as " + _where(file, place, row)

    def contradiction(self, row: Row) -> str:
        """Say where the opposite stood; empty: nowhere."""
        if isinstance(row, Sample):
            return ""
        if isinstance(row, Preference):
            key = _key((*row.prompt, row.rejected, row.chosen))
            said = "prefers the other of these answers"
        else:
            key = _key(row.conversation, not row.good)
            said = "says the opposite of this answer"
        found = self._whole.get(key)
        return "" if found is None else f"{_where(*found, row)} {said}"


def _where(file: str, place: Place, row: Row) -> str:
    return str(place) if file == row.source else f"{file}, {place}"


def _key(messages: Sequence[Message], *beside: object) -> bytes:
    """Return a digest of who says what, and of what is said of that."""
    said = [
        (
            each.role,
            each.content.strip(),
            each.tools,
            [(call.name, call.arguments) for call in each.tool_calls],
        )
        for each in messages
    ]
    text = json.dumps([said, *beside], ensure_ascii=False, default=str)
    return hashlib.blake2b(text.encode(), digest_size=8).digest()


def _overlong(row: Row, longest: Longest | None) -> str:
    if longest is None:
        return ""
    tokens = max(map(longest.measure, _samples(row)))
    return f"{tokens:,} tokens, of {longest.tokens:,} at most" if tokens > longest.tokens else ""


def _samples(row: Row) -> list[Sample]:
    """Return a row as conversations, of a preference one with each answer."""
    if isinstance(row, Preference):
        return [compared(row, at) for at in (0, 1)]
    return [row if isinstance(row, Sample) else row.sample]


def _markup(messages: Sequence[Message]) -> str:
    for number, message in enumerate(messages, 1):
        found = _MARKUP.search(message.content)
        if found is not None:
            return f"message {number} holds {found[0]}, which the model will read as plain text"
    return ""


def _damaged(messages: Sequence[Message]) -> str:
    for number, message in enumerate(messages, 1):
        if "\ufffd" in message.content:
            return f"message {number} holds U+FFFD: it was decoded wrongly once"
    return ""
