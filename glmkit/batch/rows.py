"""Reading the rows of a batch job, one at a time, from JSONL, CSV or Parquet.

A row becomes a conversation by its shape:

    messages                     the conversation itself
    custom_id + body.messages    a request of OpenAI's batch API
    instruction (+ input, system, history)   alpaca
    prompt                       one user message

With a template any columns will do: ``"Translate: {text}"``. A row that cannot be read stays a
row: it carries its error, and the job goes on.
"""

from __future__ import annotations

import csv
import json
import string
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from ..errors import DataError, GlmkitError, MissingExtraError, UsageError
from ..types import Message

Columns = dict[str, Any]
Kind = Literal["jsonl", "csv", "parquet"]

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


@dataclass(frozen=True)
class BatchRow:
    """One row of a job."""

    index: int
    """Its place in the file, from 0."""
    columns: Columns
    """As read; they are kept beside the answer."""
    messages: tuple[Message, ...] = ()
    options: Mapping[str, Any] = field(default_factory=dict)
    """What the row itself asks of generation, by the names of GenerationOptions."""
    error: str | None = None
    """Why the row cannot be asked."""


@dataclass(frozen=True)
class Reading:
    """How rows become conversations.

    :raises UsageError: if the template is none.
    """

    system: str | None = None
    """Said first in every conversation that has no system message of its own."""
    template: str | None = None
    """A user message with column names in braces."""
    adapter_column: str | None = None
    """The column that names the adapter to answer a row with; empty: the base."""

    def __post_init__(self) -> None:
        if self.system:
            Message("system", self.system)  # refuses what no message can hold, before any row
        if self.template is not None and not template_columns(self.template):
            raise UsageError(
                f"the prompt template {self.template!r} names no column; "
                "write column names in braces, for example 'Translate: {text}'"
            )


def template_columns(template: str) -> list[str]:
    """Return the columns that a template names.

    :raises UsageError: if it is not one.
    """
    try:
        parts = list(string.Formatter().parse(template))
    except ValueError as error:
        raise UsageError(
            f"the prompt template {template!r} is damaged ({error}); write {{{{ for a brace"
        ) from error
    for _, name, spec, conversion in parts:
        if name is not None and (not name or spec or conversion or not _plain(name)):
            raise UsageError(
                f"the prompt template {template!r} has {{{name}}}; only plain column names go "
                "in braces"
            )
    return [name for _, name, _, _ in parts if name]


def _plain(name: str) -> bool:
    return not any(each in name for each in ".[]")


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
    """Return about how many rows a file has; a CSV file is read through for that.

    :raises DataError: if the file cannot be read, or a quote of a CSV file is never closed.
    """
    kind = kind_of(path)
    if kind == "parquet":
        return int(_parquet(path).metadata.num_rows)
    with plain_errors(path):
        return _count_csv(path) if kind == "csv" else _count_lines(path)


def _count_lines(path: Path) -> int:
    lines, last = 0, b"\n"
    with path.open("rb") as file:
        for block in iter(lambda: file.read(1 << 20), b""):
            lines, last = lines + block.count(b"\n"), block[-1:]
    return lines + (last != b"\n")


def _count_csv(path: Path) -> int:
    return sum(1 for _ in _read_csv(path))


def read_rows(path: Path, reading: Reading) -> Iterator[BatchRow]:
    """Yield the rows of a file, in order.

    :raises DataError: if the file itself cannot be read.
    """
    read = {"jsonl": _read_jsonl, "csv": _read_csv, "parquet": _read_parquet}[kind_of(path)]
    with plain_errors(path):
        for index, (columns, error) in enumerate(read(path)):
            if error is None:
                yield _row(index, columns, reading)
            else:
                yield BatchRow(index, {}, error=error)


@contextmanager
def plain_errors(path: Path) -> Iterator[None]:
    """Turn errors of the system while reading an input into one line."""
    try:
        yield
    except OSError as error:
        raise DataError(f"cannot read {path} ({error.strerror or error})") from error


Found = tuple[Columns, str | None]


def _read_jsonl(path: Path) -> Iterator[Found]:
    with path.open("rb") as file:
        if file.read(1).strip() == b"[":
            raise DataError(
                f"{path} holds one JSON array; a job reads one JSON object a line: "
                "write it as JSON lines"
            )
        file.seek(0)
        for number, line in enumerate(file, 1):
            if line.strip():
                yield _parsed(line, number)


def _parsed(line: bytes, number: int) -> Found:
    try:
        value = _json(line.decode("utf-8-sig" if number == 1 else "utf-8"))
    except ValueError as error:
        return {}, f"line {number} is no JSON: {error}"
    if not isinstance(value, dict):
        return {}, f"line {number} holds {type(value).__name__}, expected an object"
    return value, None


def _json(text: str) -> Any:  # noqa: ANN401
    """Return what a JSON text says.

    :raises ValueError: if it is none, or nested too deep.
    """
    try:
        value = json.loads(text)
    except RecursionError as error:
        raise ValueError(f"nested deeper than {_DEEPEST}") from error
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
                wide = f"line {reader.line_num} has more cells than the header"
                yield ({}, wide) if None in row else (dict(row), None)
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
        for batch in file.iter_batches(batch_size=256):
            for row in batch.to_pylist():
                yield row, None
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


def _row(index: int, columns: Columns, reading: Reading) -> BatchRow:
    try:
        messages, options = _conversation(columns, reading)
        options = {**options, **_adapter(columns, reading.adapter_column)}
    except _BAD_ROW as error:
        return BatchRow(index, columns, error=str(error) or type(error).__name__)
    if reading.system and messages[0].role != "system":
        messages.insert(0, Message("system", reading.system))
    return BatchRow(index, columns, tuple(messages), options)


_BAD_ROW = (GlmkitError, KeyError, TypeError, ValueError)


def _adapter(columns: Columns, column: str | None) -> dict[str, Any]:
    if column is None:
        return {}
    if column not in columns:
        raise UsageError(
            f"the row lacks the column {column!r}, which names its adapter (empty: none); it has "
            f"{_named(columns)}"
        )
    chosen = columns[column]
    return {"adapter": {} if chosen in (None, "") else str(chosen)}


def _named(columns: Columns) -> str:
    return ", ".join(map(repr, columns)) or "none"


Conversation = tuple[list[Message], dict[str, Any]]


def _conversation(columns: Columns, reading: Reading) -> Conversation:
    if reading.template is not None:
        return [Message("user", _filled(reading.template, columns))], {}
    for key, read in _SHAPES.items():
        if columns.get(key) not in (None, ""):
            return read(columns)
    raise UsageError(
        f"the row has none of the columns {', '.join(_SHAPES)}; it has "
        f"{_named(columns)}: give --prompt-template"
    )


def _filled(template: str, columns: Columns) -> str:
    missing = [name for name in template_columns(template) if name not in columns]
    if missing:
        raise UsageError(f"the row lacks the column {missing[0]!r} of the prompt template")
    return template.format_map({name: "" if v is None else v for name, v in columns.items()})


def _from_messages(columns: Columns) -> Conversation:
    return _messages(columns["messages"]), {}


def _messages(value: object) -> list[Message]:
    value = _json(value) if isinstance(value, str) else value
    if not isinstance(value, list) or not value:
        raise UsageError(f"messages must be a list with one message at least, got {value!r:.80}")
    for each in value:
        if isinstance(each, dict) and "passages" in each:
            raise UsageError("a message of a job brings no passages; write them in its content")
    return [Message.of(each) for each in value]


_OPENAI_OPTIONS = {
    "max_tokens": "max_tokens",
    "max_completion_tokens": "max_tokens",
    "temperature": "temperature",
    "top_p": "top_p",
    "seed": "seed",
    "stop": "stop",
}


def _from_openai(columns: Columns) -> Conversation:
    body = columns["body"]
    if not isinstance(body, dict):
        raise UsageError(f"body must be an object, got {type(body).__name__}")
    if body.get("n", 1) != 1 or body.get("stream"):
        raise UsageError("a batch request answers once, unstreamed: leave out n and stream")
    options = {
        ours: body[theirs]
        for theirs, ours in _OPENAI_OPTIONS.items()
        if body.get(theirs) is not None
    }
    return _messages(body.get("messages")), options


def _from_alpaca(columns: Columns) -> Conversation:
    messages = [Message("system", columns["system"])] if columns.get("system") else []
    for question, answer in columns.get("history") or ():
        messages += [Message("user", question), Message("assistant", answer)]
    both = [str(columns[each]) for each in ("instruction", "input") if columns.get(each)]
    return [*messages, Message("user", "\n".join(both))], {}


def _from_prompt(columns: Columns) -> Conversation:
    prompt = columns["prompt"]
    return (_messages(prompt) if isinstance(prompt, list) else [Message("user", str(prompt))]), {}


_SHAPES: dict[str, Callable[[Columns], Conversation]] = {
    "messages": _from_messages,
    "body": _from_openai,
    "instruction": _from_alpaca,
    "prompt": _from_prompt,
}
