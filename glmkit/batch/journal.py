"""The output file of a batch job: every finished row at once, none lost, none twice.

A row is one line, written in one call. After a crash the file's last line may be torn; it is cut
off, the rows that are whole count as done, and the job goes on with the others. Beside the file
lies a small record of what job it belongs to, so that another job cannot write into it. Rows are
brought to the disk every few seconds: a power cut costs those since, which are asked again.
"""

from __future__ import annotations

import json
import math
import os
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import Any, BinaryIO

from filelock import FileLock, Timeout

from ..errors import DataError, UsageError

KEY = "glmkit"
"""The column of an output row that holds what glmkit adds about it."""

_BLOCK = 1 << 20
_MOST_SAID = 60
"""Characters of a setting that an error quotes."""
_SYNC_S = 5.0
"""The first row after so many seconds brings all to the disk."""


class Done:
    """Which rows are done: a bit each, so that a million take 125 kB."""

    def __init__(self) -> None:
        self._bits = bytearray()
        self.count = 0

    def add(self, index: int) -> None:
        """Count a row as done."""
        byte = index >> 3
        if byte >= len(self._bits):
            self._bits.extend(bytes(byte + 1 - len(self._bits)))
        if index not in self:
            self._bits[byte] |= 1 << (index & 7)
            self.count += 1

    def __contains__(self, index: int) -> bool:
        byte = index >> 3
        return byte < len(self._bits) and bool(self._bits[byte] >> (index & 7) & 1)


class Journal:
    """An open output file; a context manager that holds it for one job.

    :param job: what makes the job what it is: input, prompts, model, options.
    :param retry_errors: rows that failed before are asked again.
    :raises UsageError: if the file belongs to another job, or one is writing it now.
    :raises DataError: if it holds something that no job wrote, or cannot be read or written.
    """

    def __init__(self, path: Path, job: Mapping[str, Any], *, retry_errors: bool = False) -> None:
        self.path = path
        self.done = Done()
        self.failed = 0
        """Rows of earlier runs that ended in an error and stay so."""
        self._record = path.with_name(f".{path.name}.job.json")
        self._job = json.loads(json.dumps(job, default=str))
        self._retry = retry_errors
        self._lock = FileLock(path.with_name(f".{path.name}.lock"))
        self._file: BinaryIO | None = None
        self._synced = 0.0

    def __enter__(self) -> Journal:
        if not self.path.parent.is_dir():
            raise UsageError(f"there is no folder {self.path.parent}; create it first")
        with _plain_errors(self.path):
            self._acquire()
            try:
                self._refuse_other_job()
                self._resume()
            except BaseException:
                self._lock.release()
                raise
        return self

    def _acquire(self) -> None:
        try:
            self._lock.acquire(timeout=0)
        except Timeout as error:
            raise UsageError(
                f"another job is writing {self.path}; wait for it, or choose another file"
            ) from error

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        try:
            if self._file is not None:
                with _plain_errors(self.path):
                    os.fsync(self._file.fileno())
        finally:
            if self._file is not None:
                self._file.close()
            self._lock.release()

    def write(self, index: int, row: Mapping[str, Any]) -> None:
        """Append a finished row.

        :raises DataError: if the disk is full; what was written of the row is taken back.
        """
        if self._file is None:
            raise ValueError("the journal is not open")
        with _plain_errors(self.path):
            end = self._file.tell()
            left = memoryview(_line(row))
            try:
                while left:
                    left = left[self._file.write(left) :]
            except OSError:
                self._file.truncate(end)
                raise
            if time.monotonic() - self._synced > _SYNC_S:
                os.fsync(self._file.fileno())
                self._synced = time.monotonic()
        self.done.add(index)

    def _refuse_other_job(self) -> None:
        begun = self.path.exists() and self.path.stat().st_size > 0
        before = self._recorded() if begun else None
        if before is None:
            _replace(self._record, json.dumps(self._job).encode())
            return
        differs = _differences(before, self._job)
        if not differs:
            return
        self._cut_torn_line()
        if any(row.get("error") is None for _, row in self._rows()):
            raise UsageError(
                f"{self.path} holds the answers of a job with another {', '.join(differs)}; "
                "choose another file, or delete this one to begin again"
            )
        with self.path.open("rb+") as file:  # errors alone: nothing that anybody would miss
            file.truncate()
        _replace(self._record, json.dumps(self._job).encode())

    def _recorded(self) -> dict[str, Any]:
        """Return what job the rows belong to."""
        try:
            before = json.loads(self._record.read_bytes())
        except FileNotFoundError as error:
            raise UsageError(
                f"{self.path} exists and no job of glmkit wrote it; choose another file"
            ) from error
        except (ValueError, RecursionError):
            before = None
        if not isinstance(before, dict):
            raise DataError(
                f"{self._record}, which says what job {self.path.name} belongs to, is damaged; "
                f"choose another output file, or delete {self.path.name} to begin again"
            )
        return before

    def _resume(self) -> None:
        if self.path.exists():
            self._cut_torn_line()
            if self._retry:
                self._drop_errors()
            for _, row in self._rows():
                self.done.add(row[KEY]["index"])
                self.failed += row.get("error") is not None
        self._file = self.path.open("ab", buffering=0)
        self._synced = time.monotonic()

    def _cut_torn_line(self) -> None:
        """Take back what a killed job wrote of its last row."""
        with self.path.open("rb+") as file:
            size = end = file.seek(0, os.SEEK_END)
            while end > 0:
                start = max(0, end - _BLOCK)
                file.seek(start)
                at = file.read(end - start).rfind(b"\n")
                if at >= 0:
                    end = start + at + 1
                    break
                end = start
            if end < size:
                file.truncate(end)

    def _drop_errors(self) -> None:
        fresh = self.path.with_name(f".{self.path.name}.new")
        with fresh.open("wb") as out:
            out.writelines(line for line, row in self._rows() if row.get("error") is None)
            out.flush()
            os.fsync(out.fileno())
        os.replace(fresh, self.path)
        _sync_folder(self.path.parent)

    def _rows(self) -> Iterator[tuple[bytes, dict[str, Any]]]:
        """Yield each line with what it says."""
        with self.path.open("rb") as file:
            for number, line in enumerate(file, 1):
                try:
                    row = json.loads(line)
                    if type(row[KEY]["index"]) is not int or row[KEY]["index"] < 0:
                        raise ValueError("no index")
                except (ValueError, KeyError, TypeError, RecursionError) as error:
                    raise DataError(
                        f"{self.path}, line {number}, is not a row that glmkit wrote; "
                        "choose another output file, or delete this one to begin again"
                    ) from error
                yield line, row


def _differences(before: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """Return each setting that two jobs have not in common, with both values."""
    old, new = _flat(before), _flat(now)
    names = sorted(name for name in {*old, *new} if old.get(name) != new.get(name))
    return [f"{each} ({_short(old.get(each))}, now {_short(new.get(each))})" for each in names]


def _flat(job: Mapping[str, Any]) -> dict[str, Any]:
    """Put what is grouped (the generation options) beside the rest, under its own names."""
    grouped = {
        key: value if isinstance(value, dict) else {key: value} for key, value in job.items()
    }
    return {name: each for group in grouped.values() for name, each in group.items()}


def _short(value: Any) -> str:  # noqa: ANN401
    if value in (None, [], ""):
        return "none"
    text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
    return text if len(text) <= _MOST_SAID else f"{text[: _MOST_SAID - 3]}..."


def _line(row: Mapping[str, Any]) -> bytes:
    """Return a row as a line of JSON.

    Half a surrogate pair, which UTF-8 cannot say, becomes its JSON escape; numbers that JSON does
    not have (Parquet's NaN) become null.
    """
    try:
        text = json.dumps(row, ensure_ascii=False, allow_nan=False, default=str)
    except ValueError:
        text = json.dumps(_finite(row), ensure_ascii=False, default=str)
    return text.encode(errors="backslashreplace") + b"\n"


def _finite(value: Any) -> Any:  # noqa: ANN401
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {key: _finite(each) for key, each in value.items()}
    return [_finite(each) for each in value] if isinstance(value, (list, tuple)) else value


def _replace(path: Path, content: bytes) -> None:
    """Write a small file so that it is whole or as before, whatever interrupts."""
    fresh = path.with_name(f"{path.name}.new")
    with fresh.open("wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
    os.replace(fresh, path)
    _sync_folder(path.parent)


def _sync_folder(folder: Path) -> None:
    """Bring a replaced name to the disk; only POSIX needs that, and lets one open a folder."""
    if os.name != "posix":
        return
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


@contextmanager
def _plain_errors(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise DataError(
            f"cannot write {path} ({error.strerror or error}); the rows that it holds stay: put "
            "that right and run this again"
        ) from error
