"""The output file of a batch job: every finished row at once, none lost, none twice.

A row is one line, written in one call. After a crash the file's last line may be torn; it is cut
off, the rows that are whole count as done, and the job goes on with the others. Beside the file
lies a small record of what job it belongs to, so that another job cannot write into it.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, BinaryIO

from filelock import FileLock, Timeout

from ..errors import DataError, UsageError

KEY = "glmkit"
"""The column of an output row that holds what glmkit adds about it."""

_BLOCK = 1 << 20


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
    :raises DataError: if it holds something that no job wrote.
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

    def __enter__(self) -> Journal:
        if not self.path.parent.is_dir():
            raise UsageError(f"there is no folder {self.path.parent}; create it first")
        try:
            self._lock.acquire(timeout=0)
        except Timeout as error:
            raise UsageError(
                f"another job is writing {self.path}; wait for it, or choose another file"
            ) from error
        try:
            self._refuse_other_job()
            self._resume()
        except BaseException:
            self._lock.release()
            raise
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._file is not None:
            self._file.close()
        self._lock.release()

    def write(self, index: int, row: Mapping[str, Any]) -> None:
        """Append a finished row.

        :raises OSError: if the disk is full; what was written of the row is taken back.
        """
        if self._file is None:
            raise ValueError("the journal is not open")
        line = json.dumps(row, ensure_ascii=False, default=str).encode() + b"\n"
        end = self._file.tell()
        left = memoryview(line)
        try:
            while left:
                left = left[self._file.write(left) :]
        except OSError:
            self._file.truncate(end)
            raise
        self.done.add(index)

    def _refuse_other_job(self) -> None:
        if not self._record.is_file():
            if self.path.exists() and self.path.stat().st_size:
                raise UsageError(
                    f"{self.path} exists and no job of glmkit wrote it; choose another file"
                )
            self._record.write_text(json.dumps(self._job, ensure_ascii=False), encoding="utf-8")
            return
        try:
            before = json.loads(self._record.read_text(encoding="utf-8"))
        except ValueError:
            before = {}
        differs = sorted(
            key for key in {*before, *self._job} if before.get(key) != self._job.get(key)
        )
        if differs and self.path.exists():
            raise UsageError(
                f"{self.path} holds the rows of a job with another {', '.join(differs)}; "
                "choose another file, or delete this one to begin again"
            )
        self._record.write_text(json.dumps(self._job, ensure_ascii=False), encoding="utf-8")

    def _resume(self) -> None:
        if self.path.exists():
            self._cut_torn_line()
            if self._retry:
                self._drop_errors()
            for row in self._rows():
                self.done.add(row[KEY]["index"])
                self.failed += "error" in row and row["error"] is not None
        self._file = self.path.open("ab", buffering=0)

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
            for row in self._rows():
                if row.get("error") is None:
                    out.write(json.dumps(row, ensure_ascii=False).encode() + b"\n")
        fresh.replace(self.path)

    def _rows(self) -> Iterator[dict[str, Any]]:
        with self.path.open("rb") as file:
            for number, line in enumerate(file, 1):
                try:
                    row = json.loads(line)
                    if type(row[KEY]["index"]) is not int:
                        raise ValueError("no index")
                except (ValueError, KeyError, TypeError) as error:
                    raise DataError(
                        f"{self.path}, line {number}, is not a row that glmkit wrote; "
                        "choose another output file, or delete this one to begin again"
                    ) from error
                yield row
