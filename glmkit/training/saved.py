"""Data that others have tokenised: what `datasets.save_to_disk` writes.

Such a folder holds Arrow streams with a column ``input_ids``, and mostly ``labels``, in which -100
says that a token is not learnt, and ``attention_mask``, in which 0 says that it is a pad.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Generator, Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from ..errors import DataError, MissingExtraError, UsageError
from ..types import Progress
from .examples import Example
from .store import Made, Tally
from .tokens import Tokens, stored

IGNORED = -100
"""The label of tokens that are not learnt."""
_VERSION = 1
_AT_ONCE = 1024
"""Rows that are stored at once."""


@dataclass(frozen=True)
class SavedData:
    """A tokenised data set in a folder; of one with several splits, ``train``."""

    folder: Path

    @cached_property
    def files(self) -> list[Path]:
        """Its files.

        :raises DataError: if one is missing, or the folder is damaged.
        """
        return _files(self.folder)

    @cached_property
    def fingerprint(self) -> str:
        """A digest of all its files."""
        return hashlib.sha256(b"".join(map(_digest, self.files))).hexdigest()

    @property
    def described(self) -> str:
        """What it is, for a person."""
        return f"{self.folder}: tokenised rows in {len(self.files)} files"


def reading_saved(
    data: SavedData,
    *,
    cache: Path,
    vocab_size: int,
    max_length: int = 1024,
    overlong: str = "truncate",
) -> Generator[Progress, None, Tokens]:
    """Take a tokenised data set in.

    :param cache: the folder for tokens of all data.
    :param vocab_size: the model's: data for another one is refused.
    :param overlong: what becomes of rows above ``max_length`` tokens: ``truncate`` or ``skip``.
    :raises DataError: if a file is missing or damaged, or its columns are others.
    :raises MissingExtraError: if pyarrow is not installed.
    """
    if overlong not in ("truncate", "skip"):
        raise UsageError(f"overlong must be truncate or skip, got {overlong!r}")
    yield Progress(f"reading {data.folder.name}", 0)
    said = f"{_VERSION} {data.fingerprint} {vocab_size} {max_length} {overlong}"
    key = hashlib.sha256(said.encode()).hexdigest()

    def made(done: int) -> Iterator[Made]:
        first = 0
        for file in data.files:
            before = first
            for columns in _batches(file):
                count = len(columns["input_ids"])
                if first >= done:
                    yield _made(
                        columns,
                        f"{file.name}, row ",
                        first - before + 1,
                        vocab_size,
                        max_length,
                        skip=overlong == "skip",
                    )
                first += count

    return (yield from stored(cache, key, made))


def _files(folder: Path) -> list[Path]:
    if (folder / "dataset_dict.json").is_file():
        splits = _table(folder / "dataset_dict.json").get("splits", [])
        if "train" not in splits:
            raise DataError(
                f"{folder} has the splits {', '.join(map(str, splits)) or 'none'}, and no 'train'; "
                "name the folder of one of them"
            )
        folder = folder / "train"
    state = _table(folder / "state.json")
    if state.get("_indices_data_files") or state.get("_indices_files"):
        raise DataError(
            f"{folder} was saved with its rows in another order, by an old version of datasets; "
            "load it there, call flatten_indices(), and save it again"
        )
    listed = state.get("_data_files")
    try:
        files = [folder / each["filename"] for each in listed or ()]
    except (TypeError, KeyError) as error:
        raise DataError(f"{folder / 'state.json'} is damaged: _data_files") from error
    for file in files:
        if file.parent != folder or not file.is_file():
            raise DataError(f"{folder} lacks {file.name}, which its state.json names")
    if not files:
        raise DataError(f"{folder / 'state.json'} names no files")
    return files


def _table(file: Path) -> dict[str, Any]:
    try:
        found = json.loads(file.read_bytes())
    except (OSError, ValueError) as error:
        raise DataError(f"{file} cannot be read ({error}); save the data set again") from error
    if not isinstance(found, dict):
        raise DataError(f"{file} is damaged: it is no JSON object; save the data set again")
    return found


def _digest(file: Path) -> bytes:
    found = hashlib.sha256()
    with file.open("rb") as stream:
        while data := stream.read(1 << 20):
            found.update(data)
    return found.digest()


Columns = dict[str, list[np.ndarray]]


def _batches(file: Path) -> Iterator[Columns]:
    """Yield the rows of a file, some at a time, by column."""
    try:
        import pyarrow as pa
    except ImportError as error:
        raise MissingExtraError("reading tokenised data sets", "pyarrow", "batch") from error
    try:
        with pa.memory_map(str(file)) as source, pa.ipc.open_stream(source) as stream:
            names = _columns(file, stream.schema)
            for batch in stream:
                for start in range(0, batch.num_rows, _AT_ONCE):
                    some = batch.slice(start, _AT_ONCE)
                    yield {each: _lists(file, each, some.column(each)) for each in names}
    except (pa.ArrowInvalid, OSError) as error:
        raise DataError(f"{file} is damaged ({error}); save the data set again") from error


def _columns(file: Path, schema: Any) -> list[str]:  # noqa: ANN401
    import pyarrow as pa

    lists = (pa.types.is_list, pa.types.is_large_list, pa.types.is_fixed_size_list)
    for name in ("input_ids", "labels", "attention_mask"):
        if name not in schema.names:
            continue
        kind = schema.field(name).type
        if not any(test(kind) for test in lists) or not pa.types.is_integer(kind.value_type):
            raise DataError(f"{file}: {name} is {kind}; expected lists of whole numbers")
    if "input_ids" not in schema.names:
        raise DataError(
            f"{file} has the columns {', '.join(schema.names)}, and no input_ids; it is not "
            "tokenised: give its original files, or export it as JSON lines or Parquet"
        )
    return [each for each in ("input_ids", "labels", "attention_mask") if each in schema.names]


def _lists(file: Path, name: str, column: Any) -> list[np.ndarray]:  # noqa: ANN401
    """Return the rows of a column of lists."""
    if column.null_count:
        raise DataError(f"{file}: {name} is missing in {column.null_count:,} rows")
    flat = column.flatten()
    if flat.null_count:
        raise DataError(f"{file}: {name} holds {flat.null_count:,} empty places")
    ends = np.cumsum(column.value_lengths().to_numpy(zero_copy_only=False))
    return np.split(flat.to_numpy(zero_copy_only=False), ends[:-1]) if len(ends) else []


def _made(
    columns: Columns, where: str, first: int, vocab_size: int, max_length: int, *, skip: bool
) -> Made:
    """Return what is stored of some rows."""
    rows, numbers, reasons, cut = [], [], [], 0
    for at, ids in enumerate(columns["input_ids"]):
        place = f"{where}{first + at}"
        row = _row(place, {name: each[at] for name, each in columns.items()}, vocab_size)
        long = len(row) > max_length
        if long and not skip:
            row = Example(row.ids[:max_length], row.weights[:max_length])
        if (long and skip) or not row.weights[1:].any():
            too_long = f"it takes {len(ids):,} tokens, and max_length is {max_length:,}"
            reasons.append(f"{place}: {too_long if long else 'nothing in it is learnt'}")
            continue
        cut += long
        rows.append(row)
        numbers.append(at)
    count = len(columns["input_ids"])
    return Made.of(rows, numbers, Tally(count, count - len(rows), cut, reasons=tuple(reasons[:10])))


def _row(place: str, columns: dict[str, np.ndarray], vocab_size: int) -> Example:
    """Return a row without pads and without what follows the last token that is learnt.

    :raises DataError: if its columns do not fit each other or the model.
    """
    ids = columns["input_ids"]
    labels = columns.get("labels", ids)
    real = columns.get("attention_mask", np.ones_like(ids)).astype(bool)
    if not len(ids) == len(labels) == len(real):
        raise DataError(f"{place}: input_ids, labels and attention_mask differ in length")
    learnt = (labels != IGNORED) & real
    if (labels[learnt] != ids[learnt]).any():
        raise DataError(
            f"{place}: a label is neither {IGNORED} nor the token at its place; labels must not "
            "be shifted"
        )
    if len(ids) and not 0 <= ids.min() <= ids.max() < vocab_size:
        raise DataError(
            f"{place}: token ids are {ids.min()} to {ids.max()}, and the model knows 0 to "
            f"{vocab_size - 1}; the data was tokenised for another model"
        )
    last = int(np.flatnonzero(learnt)[-1]) + 1 if learnt.any() else 0
    kept = np.flatnonzero(real[:last])
    return Example(ids[kept].astype(np.int32), learnt[kept].astype(np.float32))
