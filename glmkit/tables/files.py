"""Files of rows: JSON lines or an array, CSV, TSV and Parquet.

Rows are read one at a time, so a file may be of any size. What makes one row unreadable is that
row's error; what makes the rest of the file unreadable is raised.
"""

from __future__ import annotations

import csv
import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO, Literal, NamedTuple

from ..errors import DataError, MissingExtraError, UsageError
from .arrays import elements, is_array

Columns = dict[str, Any]
Kind = Literal["jsonl", "csv", "parquet"]


class Place(NamedTuple):
    """Where in a file a row stands."""

    line: int = 0
    """The line that it begins in, from 1; 0 in Parquet, which has none."""
    row: int = 0
    """Its number in a JSON array or in Parquet, from 1; elsewhere lines are numbers enough."""

    def __str__(self) -> str:
        if not self.row:
            return f"line {self.line}"
        return f"element {self.row} (line {self.line})" if self.line else f"row {self.row}"


class Found(NamedTuple):
    """A row as it stands in a file."""

    columns: Columns
    error: str | None
    """Why it cannot be read."""
    place: Place


_KINDS: dict[str, Kind] = {
    ".jsonl": "jsonl",
    ".ndjson": "jsonl",
    ".json": "jsonl",
    ".csv": "csv",
    ".tsv": "csv",
    ".parquet": "parquet",
}
_LONGEST_CELL = 16 << 20
_DEEPEST = 200
"""Nested values of a row; what is far deeper cannot be written as JSON again."""


def kind_of(path: Path) -> Kind:
    """Return what kind of file a job reads.

    :raises UsageError: if glmkit cannot tell by the name.
    :raises DataError: if there is no such file.
    """
    with plain_errors(path):
        found = path.is_file()
    if not found:
        raise DataError(f"{path} is not a file; give a {', '.join(_KINDS)} file")
    kind = _KINDS.get(path.suffix.lower())
    if kind is None:
        raise UsageError(f"{path.name}: unknown ending; expected {', '.join(_KINDS)}")
    return kind


def count_rows(path: Path) -> int:
    """Return about how many rows a file has; CSV files and arrays are read through for that.

    :raises DataError: if the file cannot be read, or a quote or bracket is never closed.
    """
    kind = kind_of(path)
    if kind == "parquet":
        return int(_parquet(path).metadata.num_rows)
    with plain_errors(path):
        if kind == "csv":
            return sum(1 for _ in _read_csv(path))
        return _count_elements(path) if is_array(path) else _count_lines(path)


def columns_of(path: Path) -> list[str] | None:
    """Return the columns that every row has, where a header says so; None: each has its own.

    :raises DataError: if the file cannot be read.
    """
    kind = kind_of(path)
    if kind == "parquet":
        return [str(each) for each in _parquet(path).schema_arrow.names]
    if kind != "csv":
        return None
    with plain_errors(path):
        return next((list(each.columns) for each in _read_csv(path) if each.error is None), None)


def read_columns(path: Path, kind: Kind | None = None) -> Iterator[Found]:
    """Yield each row's columns, or why it cannot be read.

    :param kind: what kind of file it is; None: as its name says.
    :raises DataError: if the file itself cannot be read.
    """
    read = {"jsonl": _read_json, "csv": _read_csv, "parquet": _read_parquet}[kind or kind_of(path)]
    with plain_errors(path):
        yield from read(path)


def _count_elements(path: Path) -> int:
    with path.open("rb") as file:
        return sum(1 for _ in elements(file, path))


def _count_lines(path: Path) -> int:
    lines, last = 0, b"\n"
    with path.open("rb") as file:
        for block in iter(lambda: file.read(1 << 20), b""):
            lines, last = lines + block.count(b"\n"), block[-1:]
    return lines + (last != b"\n")


@contextmanager
def plain_errors(path: Path) -> Iterator[None]:
    """Turn errors of the system while reading an input into one line."""
    try:
        yield
    except OSError as error:
        raise DataError(f"cannot read {path} ({error.strerror or error})") from error


def _read_json(path: Path) -> Iterator[Found]:
    with path.open("rb") as file:
        if is_array(path):
            yield from _read_elements(file, path)
            return
        for number, text in enumerate(file, 1):
            if text.strip():
                yield _parsed(text, Place(number))


def _read_elements(file: BinaryIO, path: Path) -> Iterator[Found]:
    line = 1
    for number, text in enumerate(elements(file, path), 1):
        before = len(text) - len(text.lstrip())
        yield _parsed(text, Place(line + text.count(b"\n", 0, before), number))
        line += text.count(b"\n")


def _parsed(text: bytes, place: Place) -> Found:
    try:
        value = parsed_json(text.decode("utf-8-sig" if place.line == 1 else "utf-8"))
    except UnicodeDecodeError as error:
        wrong = f"byte {text[error.start]:#04x} at {error.start + 1}"
        return Found({}, f"is no JSON: it is not in UTF-8 ({wrong})", place)
    except ValueError as error:
        return Found({}, f"is no JSON: {error}", place)
    if not isinstance(value, dict):
        return Found({}, f"holds {type(value).__name__}, expected an object", place)
    return Found(value, None, place)


def parsed_json(text: str) -> Any:  # noqa: ANN401
    """Return what a JSON text says.

    :raises ValueError: if it is none, or nested too deep.
    """
    try:
        value = json.loads(text)
    except RecursionError as error:
        raise ValueError(f"nested deeper than {_DEEPEST}") from error
    except json.JSONDecodeError as error:
        near = f", near {text[max(error.pos - 20, 0) : error.pos + 20]!r}" if text.strip() else ""
        raise ValueError(f"{error.msg} at character {error.pos + 1}{near}") from error
    if text.count("[") + text.count("{") > _DEEPEST and _depth(value) > _DEEPEST:
        raise ValueError(f"nested deeper than {_DEEPEST}")
    return value


def _depth(value: object) -> int:
    """Return how deep lists and objects lie in each other."""
    depth, level = 0, [value]
    while level := [each for each in level if isinstance(each, (dict, list))]:
        depth += 1
        level = [
            inner for each in level for inner in (each.values() if isinstance(each, dict) else each)
        ]
    return depth


def _read_csv(path: Path) -> Iterator[Found]:
    csv.field_size_limit(_LONGEST_CELL)
    with path.open(encoding="utf-8-sig", newline="") as file:
        delimiter = "\t" if path.suffix.lower() == ".tsv" else ","
        reader = csv.DictReader(file, delimiter=delimiter, strict=True)
        start = 1
        try:
            if not reader.fieldnames:
                raise DataError(f"{path} has no header line; the first line names the columns")
            start = reader.line_num + 1
            for row in reader:
                wide = f"has more cells than the header, which names {len(reader.fieldnames)}"
                place = Place(start)
                yield Found({}, wide, place) if None in row else Found(dict(row), None, place)
                start = reader.line_num + 1
        except UnicodeDecodeError as error:
            raise DataError(f"{path} is no UTF-8 CSV file ({error}); save it as UTF-8") from error
        except csv.Error as error:
            raise DataError(
                f"{path}, the row from line {start} on: {error}; a quote there may not be closed "
                'or not be doubled (""): correct it'
            ) from error


def _read_parquet(path: Path) -> Iterator[Found]:
    file = _parquet(path)
    from pyarrow import ArrowException

    try:
        rows = (row for batch in file.iter_batches(batch_size=256) for row in batch.to_pylist())
        for number, row in enumerate(rows, 1):
            yield Found(row, None, Place(row=number))
    except ArrowException as error:
        raise DataError(f"{path} is damaged ({error})") from error


def _parquet(path: Path) -> Any:  # noqa: ANN401
    try:
        from pyarrow import ArrowException
        from pyarrow.parquet import ParquetFile
    except ImportError as error:
        raise MissingExtraError("reading Parquet", "pyarrow", "batch") from error
    try:
        return ParquetFile(path)
    except (ArrowException, OSError) as error:
        raise DataError(f"{path} is no Parquet file ({error})") from error
