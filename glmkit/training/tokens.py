"""Data as token ids on disk: made once, by several processes, and read from there.

A folder of the cache holds flat arrays, one row's tokens behind another's, that are mapped into
memory and never held: a million rows take some megabytes. What was being made when a run ended
is gone on with; what is damaged is made anew.

=============  =====================================================================
``ids``        int32, all tokens of all rows
``weights``    float32, how much each counts
``rows``       for each row its length, its weight, and the number of its sample
``made.json``  how much of these files is valid, their checksums, and what was skipped
=============  =====================================================================

No torch: the processes that make it do without.
"""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Generator, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Protocol, overload

import numpy as np
from filelock import FileLock, Timeout

from .. import __version__
from ..dataset.samples import Sample
from ..disk import explain_full_disk, make_folder
from ..errors import DataError
from ..types import Progress
from .encoding import Encoded, SampleEncoder
from .examples import Example
from .store import ROW, Complete, Made, Store, Tally, read_made
from .workers import in_processes

_VERSION = 2
"""Of how samples become rows: what was made otherwise is of no use."""
_AT_ONCE = 256
"""Samples that are written for the model at once."""
_WORTH_IT = 4096
"""Samples from which on several processes are quicker than one."""
_FILES = (
    *("ice_text.model", "tokenizer.model", "tokenizer.json", "tokenizer_config.json"),
    *("config.json", "generation_config.json", "glmkit.json"),
)
"""What decides how a folder's model reads texts."""


class Samples(Protocol):
    """Data; :class:`glmkit.dataset.Data` is."""

    @property
    def fingerprint(self) -> str:
        """Equal data, equal fingerprint."""
        ...

    def __len__(self) -> int: ...

    def samples(self) -> Iterator[Sample]:
        """Yield the samples, always in the same order."""
        ...


@dataclass(frozen=True)
class Reading:
    """What :meth:`SampleEncoder.open` is told, as it is sent to other processes."""

    folder: Path
    family: str | None = None
    system: str | None = None
    max_length: int = 1024
    overlong: str = "truncate"

    def open(self) -> SampleEncoder:
        """Open the vocabulary.

        :raises CheckpointError: if the folder has none that glmkit knows.
        :raises UsageError: if a setting is none that can be.
        """
        return SampleEncoder.open(
            self.folder,
            family=self.family,
            system=self.system,
            max_length=self.max_length,
            overlong=self.overlong,
        )

    @property
    def digest(self) -> str:
        """A digest of all that decides which tokens come out."""
        whole = hashlib.sha256(
            json.dumps([self.family, self.system, self.max_length, self.overlong]).encode()
        )
        for name in _FILES:
            file = self.folder / name
            if file.is_file():
                whole.update(name.encode() + hashlib.sha256(file.read_bytes()).digest())
        return whole.hexdigest()


class Tokens(Sequence[Example]):
    """Rows on disk.

    :param folder: where :func:`stored` put them.
    :param made: what is said of them.
    :raises DataError: if there are none.
    """

    def __init__(self, folder: Path, made: Complete) -> None:
        self.tally = made.tally
        """What became of the samples."""
        if not made.rows:
            raise DataError(f"nothing can be learnt from the data: {self.tally}")
        rows = np.fromfile(folder / "rows", ROW)
        self.lengths = rows["length"].astype(np.int64)
        """Tokens of each row."""
        self.totals = rows["total"].astype(np.float64)
        """The weight of each row in the loss."""
        self.samples = rows["sample"]
        """Which sample each row is of, from 0."""
        self._starts = np.concatenate(([0], np.cumsum(self.lengths)))
        self._ids = np.memmap(folder / "ids", np.int32, "r")
        self._weights = np.memmap(folder / "weights", np.float32, "r")

    def __len__(self) -> int:
        return len(self.lengths)

    @overload
    def __getitem__(self, at: int) -> Example: ...
    @overload
    def __getitem__(self, at: slice) -> Sequence[Example]: ...
    def __getitem__(self, at: int | slice) -> Example | Sequence[Example]:
        if isinstance(at, slice):
            return [self[each] for each in range(*at.indices(len(self)))]
        if not -len(self) <= at < len(self):
            raise IndexError(at)
        at %= len(self)
        span = slice(self._starts[at], self._starts[at + 1])
        return Example(np.asarray(self._ids[span]), np.asarray(self._weights[span]))


def tokenizing(
    data: Samples, reading: Reading, *, cache: Path, processes: int = 1
) -> Generator[Progress, None, Tokens]:
    """Make tokens of data, or find those that were made before.

    :param cache: the folder for tokens of all data.
    :param processes: how many may work, where there is enough to do.
    :raises DataError: if nothing can be learnt; says why.
    :raises CheckpointError: if the model has no vocabulary that glmkit knows.
    """
    key = hashlib.sha256(
        f"{_VERSION} {__version__} {data.fingerprint} {reading.digest}".encode()
    ).hexdigest()
    count = len(data)
    many = processes if count >= _WORTH_IT else 1

    def made(done: int) -> Iterator[Made]:
        rest = islice(data.samples(), done, None)
        chunks = iter(lambda: list(islice(rest, _AT_ONCE)), [])
        if many > 1:
            return in_processes(encoded, chunks, reading, processes=many)
        own = reading.open()
        return (encoded(own, chunk) for chunk in chunks)

    return (yield from stored(cache, key, made, count))


def encoded(encoder: SampleEncoder, samples: list[Sample]) -> Made:
    """Return what is stored of some samples."""
    found = encoder.encode(samples)
    numbers = [at for at, each in enumerate(found) for _ in each.rows]
    rows = [row for each in found for row in each.rows]
    return Made.of(rows, numbers, _tally(samples, found))


def _tally(samples: Sequence[Sample], found: Sequence[Encoded]) -> Tally:
    reasons = [
        f"{sample.source}, {sample.place}: {each.reason}" if sample.source else each.reason
        for sample, each in zip(samples, found, strict=True)
        if each.reason
    ]
    return Tally(
        samples=len(samples),
        skipped=sum(not each.rows for each in found),
        cut=sum(each.cut for each in found),
        parted=sum(each.parted for each in found),
        reasons=tuple(reasons),
    )


class Maker(Protocol):
    """Makes what is to be stored."""

    def __call__(self, done: int, /) -> Iterator[Made]:
        """Yield it in order, without that of the first ``done`` samples."""
        ...


def stored(
    cache: Path, key: str, maker: Maker, count: int | None = None
) -> Generator[Progress, None, Tokens]:
    """Store what a maker makes, or find what is there under its key.

    Of several processes that want the same, one makes it.

    :param count: how many samples there are.
    :raises DataError: if there are no rows in the end.
    """
    make_folder(cache)
    folder = cache / key[:32]
    lock = FileLock(cache / f"{key[:32]}.lock")
    while True:
        try:
            lock.acquire(timeout=0.5)
            break
        except Timeout:
            yield Progress("waiting for another process that tokenises the same data", 0)
    try:
        made = read_made(folder)
        if made is None or not made.holds(folder):
            shutil.rmtree(folder, ignore_errors=True)
            made = yield from _store(folder, maker, count)
        return Tokens(folder, made)
    finally:
        lock.release()


def _store(folder: Path, maker: Maker, count: int | None) -> Generator[Progress, None, Complete]:
    with explain_full_disk(folder), Store(folder.with_suffix(".part")) as store:
        stage = "tokenising data"
        yield Progress(stage, store.samples, count)
        for some in maker(store.samples):
            store.add(some)
            yield Progress(stage, store.samples, count, note=f"{store.rows:,} rows")
        return store.finish(folder)
