"""One file of training data: what format it is in, and its rows as samples."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from typing import Any

from ..errors import DataError, UsageError
from ..tables.files import Found, Kind, parsed_json, plain_errors, read_columns
from .columns import ColumnNames
from .encodings import check_encoding
from .order import sample_of
from .pairs import pair_of
from .preferences import preferences_of
from .samples import BadRow, Kind as Wanted, Preference, Row, Verdict
from .shapes import ACCEPTED, Shape, custom, shape_among, shape_of
from .turns import Turn, turns_of
from .verdicts import unpaired, verdict_of

_LOOKED_AT = 50
"""Rows at most that a format is told by."""
_LARGEST_OBJECT = 64 << 20
"""Bytes of a file that is looked at whole to say what it is."""
_KINDS: dict[str, Kind] = {".csv": "csv", ".tsv": "csv", ".parquet": "parquet"}


@dataclass(frozen=True)
class Source:
    """A file of samples."""

    path: Path
    kind: Kind
    shape: Shape
    alone: bool = False
    """Answers that are compared are read by themselves, as good or not."""

    @property
    def name(self) -> str:
        """What messages call it."""
        return self.path.name

    @property
    def holds(self) -> Wanted:
        """What its rows are."""
        if self.alone or self.shape.kind == "verdict":
            return "verdicts"
        return "preferences" if self.shape.kind == "preference" else "answers"

    @property
    def makes_several(self) -> bool:
        """Whether a row may be several preferences or verdicts."""
        return self.alone or (self.holds == "preferences" and self.shape.names.rejected is None)

    def read(self, train_on: str = "all", ranked: str = "all") -> Iterator[Row | BadRow]:
        """Yield every row, as a sample, as what it states of answers, or as why it is none.

        :raises DataError: if the file itself cannot be read any more.
        """
        for found in read_columns(self.path, self.kind):
            if found.error is not None:
                yield BadRow(self.name, found.place, found.error)
                continue
            try:
                yield from self._rows(found, train_on, ranked)
            except (DataError, UsageError) as error:
                yield BadRow(self.name, found.place, str(error))

    def _rows(self, found: Found, train_on: str, ranked: str) -> Iterator[Row | BadRow]:
        where = (self.name, found.place)
        if self.shape.kind == "preference":
            yield from self._compared(found, ranked)
        elif self.shape.kind == "verdict":
            turns = self._turns(found.columns)
            yield verdict_of(found.columns, turns, self.shape.names, *where)
        else:
            yield sample_of(self._turns(found.columns), train_on, *where)

    def _compared(self, found: Found, ranked: str) -> Iterator[Preference | Verdict | BadRow]:
        self._refuse_lacking(found.columns)
        how = "best" if self.alone else ranked
        pairs = preferences_of(found.columns, self.shape.names, how, self.name, found.place)
        for each in unpaired(pairs) if self.alone else pairs:
            if isinstance(each, DataError):
                yield BadRow(self.name, found.place, str(each))
            else:
                yield each

    def _refuse_lacking(self, row: dict[str, Any]) -> None:
        lacking = [each for each in self.shape.required if each not in row]
        if lacking:
            raise DataError(_lacks(row, lacking, self.shape))

    def _turns(self, row: dict[str, Any]) -> list[Turn]:
        self._refuse_lacking(row)
        names = self.shape.names
        if not names.messages:
            return pair_of(row, names)
        beside = {"system": row.get(names.system or ""), "tools": row.get(names.tools or "")}
        return turns_of(row[names.messages or ""], names.tags, **beside)


def open_source(
    path: Path,
    names: ColumnNames = ColumnNames(),  # noqa: B008
    wanted: Wanted | None = "answers",
) -> Source:
    """Find out what format a file is in.

    :param names: columns that somebody named; the others are as detected.
    :param wanted: what it is read for; None: either.
    :raises DataError: if it cannot be read, is empty, or is no such data.
    """
    shape = shape_in(path, names, judged=wanted == "verdicts")
    alone = wanted == "verdicts" and shape.kind == "preference"
    found = Source(path, kind_in(path), shape, alone)
    if shape.kind == "text" and wanted in (None, "answers"):
        raise DataError(f"{path} {_TEXT}")
    if wanted not in (None, found.holds):
        said = _TO_KTO if (wanted, found.holds) == ("answers", "verdicts") else _REFUSED[wanted]
        raise DataError(f"{path} {said.format(shape.name)}")
    return found


_TEXT = (
    "holds plain text without questions and answers, and those are wanted here: name "
    "--prompt-column and --response-column if it has them"
)
_TO_KTO = (
    "holds {}, and answers to learn are wanted here: glmkit finetune kto learns from those; to "
    "learn them all, bad ones too, name --prompt-column and --response-column"
)
_REFUSED: dict[Wanted, str] = {
    "answers": "holds preference data ({}), and answers to learn are wanted here: give a file of "
    "questions and answers",
    "preferences": "holds {}, and preferences are wanted here: rows with a question, the column "
    "chosen and the column rejected, or output: [best, ...]; other columns can be named: "
    "--prompt-column, --chosen-column, --rejected-column",
    "verdicts": "holds {}, and answers with a verdict are wanted here: rows with a question, an "
    "answer, and label (or kto_tag): true or false; other columns can be named: --prompt-column, "
    "--response-column, --label-column; preferences do, too",
}


def shape_in(
    path: Path,
    names: ColumnNames = ColumnNames(),  # noqa: B008
    *,
    judged: bool = False,
) -> Shape:
    """Return the format of a file, whether its answers can be learnt or not.

    :param judged: answers with a verdict are wanted.
    :raises DataError: if it cannot be read, is empty, or in no format that is known.
    """
    rows = list(islice(rows_in(path), _LOOKED_AT))
    good = [each.columns for each in rows if each.error is None]
    if not good:
        raise DataError(_unreadable(path, rows))
    shape = shape_among(good, judged=judged)
    if names != ColumnNames():
        return _named(path, custom(names, shape), good)
    if shape is None:
        raise DataError(_unknown(path, good[0]))
    return shape


def rows_in(path: Path) -> Iterator[Found]:
    """Yield the rows of a file as they stand there, whatever its format.

    :raises DataError: if it cannot be read.
    """
    yield from read_columns(path, kind_in(path))


def kind_in(path: Path) -> Kind:
    """Return what kind of file it is, by its name, else by how it begins.

    :raises DataError: if there is no such file, or it is empty or no file of rows in UTF-8.
    """
    if not path.is_file():
        raise DataError(f"{path} is not a file")
    with plain_errors(path), path.open("rb") as file:
        head = file.read(1 << 16)
    if not head.strip():
        raise DataError(f"{path} is empty")
    if head.startswith(b"PAR1"):
        return "parquet"
    other = next((said for start, said in _OTHERS.items() if head.startswith(start)), None)
    if other is not None:
        raise DataError(f"{path} is {other}")
    with plain_errors(path):
        check_encoding(path)
    kind = _KINDS.get(path.suffix.lower(), "jsonl")
    if kind == "jsonl" and head.removeprefix(b"\xef\xbb\xbf").lstrip()[:1] not in (b"{", b"["):
        raise DataError(f"{path} is no file of rows: it begins with {head[:20]!r}; {_FILES}")
    return kind


_OTHERS = {
    b"version https://git-lfs": "a Git LFS pointer, not the file itself; run: git lfs pull",
    b"\x1f\x8b": "compressed; run: gunzip -k on it",
    b"\x28\xb5\x2f\xfd": "compressed; run: zstd -d on it",
    b"PK\x03\x04": "a zip archive (or a spreadsheet); unpack it, or save it as CSV",
}
_FILES = "JSON lines, a JSON array, .csv, .tsv and .parquet can be read"


def _named(path: Path, shape: Shape, rows: list[dict[str, Any]]) -> Shape:
    """Refuse a format of columns that somebody named, if no row has them.

    :raises DataError: naming the first that is missing.
    """
    if shape.kind == "pairs" and not (shape.names.prompt and shape.names.response):
        given = ", ".join(shape.names.named.values())
        raise DataError(
            f"{path}: beside {given}, name the columns of questions and answers "
            f"(--prompt-column, --response-column); it has {listed(rows[0])}"
        )
    if shape.kind == "verdict" and not (shape.names.label and _answers(shape.names)):
        raise DataError(
            f"{path}: name the columns of questions, answers and verdicts: --prompt-column, "
            f"--response-column (or --messages-column), --label-column; it has {listed(rows[0])}"
        )
    if shape.kind == "preference" and not shape.names.chosen:
        raise DataError(
            f"{path}: name the column of the better answers, too: --chosen-column; it has "
            f"{listed(rows[0])}"
        )
    for column in shape.names.named.values():
        if column in shape.required and not any(column in each for each in rows):
            raise DataError(f"{path} has no column {column!r}; it has {listed(rows[0])}")
    return replace(shape)


def _answers(names: ColumnNames) -> bool:
    """Tell whether columns say where questions and answers stand."""
    return bool(names.messages or (names.prompt and names.response))


def _unreadable(path: Path, rows: list[Found]) -> str:
    """Say why nothing of a file can be read."""
    if not rows:
        return f"{path} holds no rows"
    keys = _keys_of_one_object(path)
    if keys is not None:
        return (
            f"{path} is one JSON object with the keys {listed(keys)}; expected are its rows alone: "
            "[{...}, {...}], or one object a line"
        )
    return f"no row of {path} can be read: {rows[0].place} {rows[0].error}; {_FILES}"


def _keys_of_one_object(path: Path) -> list[str] | None:
    """Return the keys where a file is one JSON object over many lines."""
    if path.stat().st_size > _LARGEST_OBJECT:
        return None
    try:
        value = parsed_json(path.read_text(encoding="utf-8-sig"))
    except ValueError:
        return None
    return list(value) if isinstance(value, dict) else None


def _unknown(path: Path, row: dict[str, Any]) -> str:
    said = (
        f"{path} is in no format that is known: it has the columns {listed(row)}; known are "
        f"{ACCEPTED}; other columns can be named: --prompt-column, --response-column"
    )
    if _KINDS.get(path.suffix.lower()) == "csv":
        said += ". The first line of a CSV file names its columns: does it?"
    return said


def _lacks(row: dict[str, Any], lacking: list[str], shape: Shape) -> str:
    missing = " and ".join(map(repr, lacking))
    said = f"lacks {missing}, which {shape.name} needs; it has {listed(row)}"
    other = shape_of(row)
    return said if other is None else f"{said}: that is {other.name}"


def listed(names: Iterable[str]) -> str:
    """Return names of columns for a message, not too many of them."""
    known = [repr(each if len(each) <= 40 else f"{each[:37]}...") for each in islice(names, 9)]
    return ", ".join(known[:8]) + (", ..." if len(known) > 8 else "") if known else "none"
