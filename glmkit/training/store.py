"""The files of tokens on disk, as they are written: what is complete is kept, whatever happens."""

from __future__ import annotations

import json
import os
import shutil
import time
import zlib
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from types import TracebackType
from typing import BinaryIO

import numpy as np

from .examples import Example

ROW = np.dtype([("length", "<i4"), ("sample", "<i4"), ("total", "<f4")])
_FILES = ("ids", "weights", "rows")
_NOTE = "made.json"
_EVERY_S = 2.0
"""Between two notes of how much is complete."""
_NAMED = 10
"""Reasons that are kept."""
_READ = 1 << 22


@dataclass(frozen=True)
class Tally:
    """What became of samples."""

    samples: int = 0
    skipped: int = 0
    """Samples that no row is of."""
    cut: int = 0
    """Answers whose end did not fit."""
    parted: int = 0
    """Rows that begin in the middle of a conversation."""
    reasons: tuple[str, ...] = ()
    """Why samples were skipped, the first few."""

    def __add__(self, other: Tally) -> Tally:
        return Tally(
            self.samples + other.samples,
            self.skipped + other.skipped,
            self.cut + other.cut,
            self.parted + other.parted,
            (self.reasons + other.reasons)[:_NAMED],
        )

    def __str__(self) -> str:
        said = [f"{self.samples:,} samples"]
        counts = (
            (self.skipped, "skipped"),
            (self.cut, "answers cut at max_length"),
            (self.parted, "rows that begin in the middle of a conversation"),
        )
        said += [f"{count:,} {what}" for count, what in counts if count]
        return ", ".join(said) + (f" ({'; '.join(self.reasons[:3])})" if self.reasons else "")


@dataclass(frozen=True)
class Made:
    """Rows, ready to be stored."""

    ids: bytes
    weights: bytes
    rows: bytes
    tally: Tally

    @classmethod
    def of(cls, examples: Sequence[Example], samples: Sequence[int], tally: Tally) -> Made:
        """Store examples.

        :param samples: which sample each is of, from 0.
        """
        rows = np.zeros(len(examples), ROW)
        rows["length"] = [len(each) for each in examples]
        rows["sample"] = samples
        rows["total"] = [each.weights[1:].sum() for each in examples]
        return cls(
            b"".join(each.ids.astype("<i4").tobytes() for each in examples),
            b"".join(each.weights.astype("<f4").tobytes() for each in examples),
            rows.tobytes(),
            tally,
        )


@dataclass
class Complete:
    """What `made.json` says: how much of the files is valid."""

    sizes: dict[str, int] = field(default_factory=lambda: dict.fromkeys(_FILES, 0))
    sums: dict[str, int] = field(default_factory=lambda: dict.fromkeys(_FILES, 0))
    """Their checksums (CRC-32)."""
    tally: Tally = Tally()  # noqa: RUF009 - it is frozen

    @property
    def rows(self) -> int:
        """How many rows there are."""
        return self.sizes["rows"] // ROW.itemsize

    def holds(self, folder: Path, *, whole: bool = True) -> bool:
        """Tell whether the files are what they are said to be.

        :param whole: and nothing follows.
        """
        for name in _FILES:
            try:
                size = (folder / name).stat().st_size
            except OSError:
                return False
            if size < self.sizes[name] or (whole and size != self.sizes[name]):
                return False
            if _sum(folder / name, self.sizes[name]) != self.sums[name]:
                return False
        return True

    def write(self, folder: Path) -> None:
        """Note it, all at once."""
        partial = folder / f"{_NOTE}.part"
        partial.write_text(json.dumps(asdict(self)), encoding="utf-8")
        os.replace(partial, folder / _NOTE)


def read_made(folder: Path) -> Complete | None:
    """Return what `made.json` says, None where there is none or it is damaged."""
    try:
        raw = json.loads((folder / _NOTE).read_bytes())
        tally = Tally(**{**raw["tally"], "reasons": tuple(raw["tally"]["reasons"])})
        sizes, sums = ({name: int(raw[key][name]) for name in _FILES} for key in ("sizes", "sums"))
    except (OSError, ValueError, TypeError, KeyError, AttributeError):
        return None
    return Complete(sizes, sums, tally)


def _sum(file: Path, size: int) -> int:
    found = 0
    with file.open("rb") as stream:
        while size:
            data = stream.read(min(size, _READ))
            if not data:
                return -1
            found, size = zlib.crc32(data, found), size - len(data)
    return found


class Store:
    """Writes the files of a folder, going on where they are complete."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._done = _begun(folder)
        self._files: dict[str, BinaryIO] = {}
        self._noted = time.monotonic()

    @property
    def samples(self) -> int:
        """How many samples are done."""
        return self._done.tally.samples

    @property
    def rows(self) -> int:
        """How many rows there are."""
        return self._done.rows

    def __enter__(self) -> Store:
        for name in _FILES:
            stream = (self.folder / name).open("ab")
            stream.truncate(self._done.sizes[name])
            self._files[name] = stream
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._files:
            self._note()
            self._close()

    def add(self, made: Made) -> None:
        """Store rows of the next samples."""
        rows = np.frombuffer(made.rows, ROW).copy()
        rows["sample"] += self.samples
        sizes, sums = dict(self._done.sizes), dict(self._done.sums)
        for name, data in (("ids", made.ids), ("weights", made.weights), ("rows", rows.tobytes())):
            self._files[name].write(data)
            sizes[name] += len(data)
            sums[name] = zlib.crc32(data, sums[name])
        # All at once: who is interrupted in between has stored nothing of these rows.
        self._done = Complete(sizes, sums, self._done.tally + made.tally)
        if time.monotonic() - self._noted > _EVERY_S:
            self._note()

    def finish(self, folder: Path) -> Complete:
        """Move the files to where they are looked for."""
        self._note()
        self._close()
        os.replace(self.folder, folder)
        return self._done

    def _note(self) -> None:
        for stream in self._files.values():
            stream.flush()
        self._done.write(self.folder)
        self._noted = time.monotonic()

    def _close(self) -> None:
        for stream in self._files.values():
            stream.close()
        self._files.clear()


def _begun(folder: Path) -> Complete:
    """Return what is complete of a folder; one that is damaged is begun anew."""
    found = read_made(folder)
    if found is not None and found.holds(folder, whole=False):
        return found
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    return Complete()
