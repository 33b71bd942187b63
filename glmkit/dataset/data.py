"""Data to learn from: files read as samples, several mixed, the same for the same seed.

Files are read as they are needed, never held: a million rows take no more memory than one.
"""

from __future__ import annotations

import hashlib
import json
import random
from collections.abc import Generator, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TypeVar

from ..errors import DataError, UsageError
from ..tables.files import Place
from ..types import Progress
from .columns import ColumnNames
from .info import Listing
from .samples import RANKED, TRAIN_ON, BadRow, Kind, Preference, Row, Sample, Verdict
from .sources import Source, open_source
from .specs import wanted

RowT = TypeVar("RowT", bound=Row)
_READ = 1 << 20
_EVERY = 20_000
"""Rows between two lines of progress."""
_NAMED = 10
"""Bad rows that an error lists."""
_KEPT = 1000
"""Bad rows of a file that are remembered."""
_VERSION = 1
"""Of how rows become samples: what was kept of them otherwise is of no use."""


@dataclass(frozen=True)
class Part:
    """A file of a mixture."""

    source: Source
    count: int
    """Rows that are samples; else the pairs, or answers with a verdict, that its rows make."""
    skipped: int
    """Rows that are none."""
    bad: tuple[BadRow, ...]
    """The first of these, a thousand at most."""
    digest: str
    """Of the file's bytes."""
    passes: tuple[bytes, ...]
    """Which of its samples are taken, 1 or 0 for each; several where it is read several times."""

    def __len__(self) -> int:
        return sum(each.count(1) for each in self.passes)

    def samples(self, train_on: str, ranked: str = "all") -> Iterator[Row]:
        """Yield its samples, in the order of the file.

        :raises DataError: if it was changed since it was opened.
        """
        for taken in self.passes:
            rows = self.source.read(train_on, ranked)
            good = (each for each in rows if not isinstance(each, BadRow))
            seen = 0
            for sample in good:
                if seen < len(taken) and taken[seen]:
                    yield sample
                seen += 1
            if seen != len(taken):
                raise DataError(
                    f"{self.source.path} was changed while it was in use: it had {len(taken):,} "
                    f"samples, and has {seen:,}; begin again"
                )

    def rows(self, taken: bytes, ranked: str) -> list[int]:
        """Return which row, from 0, each sample of a pass is of; ranked answers share one."""
        if not self.source.makes_several:
            return list(range(taken.count(1)))
        pairs = replace(self, passes=(taken,)).samples("all", ranked)
        known: dict[Place, int] = {}
        return [known.setdefault(each.place, len(known)) for each in pairs]

    @property
    def described(self) -> str:
        """What it is, for a person: ``"a.json: alpaca, 1,000 rows"``."""
        unit, units = _UNITS[self.source.holds]
        named = unit if self.count == 1 else units
        said = f"{self.source.name}: {self.source.shape.name}, {self.count:,} {named}"
        if len(self.passes) > 1:
            said += f", {len(self):,} {'samples' if units == 'rows' else units} of them"
        elif len(self) != self.count:
            said += f", of which {len(self):,} are taken"
        return said + (f", {self.skipped:,} bad {_s(self.skipped)} skipped" if self.bad else "")


_UNITS: dict[Kind, tuple[str, str]] = {
    "answers": ("row", "rows"),
    "preferences": ("pair", "pairs"),
    "verdicts": ("answer", "answers"),
}


@dataclass(frozen=True)
class Data:
    """Samples of one or several files; or preferences or verdicts, where it was opened for them."""

    parts: tuple[Part, ...]
    train_on: str = "all"
    ranked: str = "all"
    """Which pairs ranked answers make."""

    def __len__(self) -> int:
        return sum(map(len, self.parts))

    @property
    def holds(self) -> Kind:
        """What its rows are, all of them."""
        return self.parts[0].source.holds

    def samples(self) -> Iterator[Sample]:
        """Yield the samples, file after file, always in the same order."""
        return self._all(Sample)

    def preferences(self) -> Iterator[Preference]:
        """Yield the preferences, file after file, always in the same order."""
        return self._all(Preference)

    def verdicts(self) -> Iterator[Verdict]:
        """Yield the answers with a verdict, file after file, always in the same order."""
        return self._all(Verdict)

    def rows(self) -> Iterator[Row]:
        """Yield whatever it holds, file after file, always in the same order."""
        for part in self.parts:
            yield from part.samples(self.train_on, self.ranked)

    def _all(self, kind: type[RowT]) -> Iterator[RowT]:
        return (each for each in self.rows() if isinstance(each, kind))

    @property
    def skipped(self) -> int:
        """How many rows are no samples and were left out."""
        return sum(part.skipped for part in self.parts)

    @property
    def bad(self) -> list[BadRow]:
        """Those rows, the first thousand of each file."""
        return [row for part in self.parts for row in part.bad]

    @property
    def described(self) -> str:
        """What it is, a line for each file."""
        return "\n".join(part.described for part in self.parts)

    @property
    def fingerprint(self) -> str:
        """A digest of all that the samples come from: equal data, equal fingerprint."""
        how = {"answers": self.train_on, "preferences": self.ranked}.get(self.holds, self.holds)
        whole = hashlib.sha256(f"{_VERSION} {how}".encode())
        for part in self.parts:
            names = json.dumps(asdict(part.source.shape.names), sort_keys=True)
            whole.update(f"{part.digest} {part.source.kind} {names}".encode())
            for taken in part.passes:
                whole.update(hashlib.sha256(taken).digest())
        return whole.hexdigest()

    def split(self, size: float, *, seed: int = 42) -> tuple[Data, Data]:
        """Return what is learnt, and what is kept from it for evaluation.

        A sample is only in one of them, however often it is in the mixture, and so is a row with
        all pairs that its ranked answers make.

        :param size: a share below 1, or how many samples; of ranked rows, about as many.
        :raises UsageError: if nothing would be left to learn.
        """
        passes = [_any(part.passes) for part in self.parts]
        rows = [p.rows(taken, self.ranked) for p, taken in zip(self.parts, passes, strict=True)]
        total, different = sum(map(len, rows)), sum(len(set(each)) for each in rows)
        count = round(size * total) if size < 1 else int(size)
        share = max(round(count * different / max(total, 1)), count > 0)
        if not 0 <= share < different:
            raise UsageError(
                f"val_size {size:g} keeps {count:,} of {total:,} samples for evaluation, and none "
                "would be left to learn"
            )
        kept = _picked(different, share, f"{seed} split")
        learnt, held = [], []
        start = 0
        for part, taken, of in zip(self.parts, passes, rows, strict=True):
            here = iter(of)
            out = bytes(kept[start + next(here)] if each else 0 for each in taken)
            start += len(set(of))
            learnt.append(replace(part, passes=tuple(_without(p, out) for p in part.passes)))
            held.append(replace(part, passes=(out,)))
        return replace(self, parts=tuple(learnt)), replace(self, parts=tuple(held))


def open_data(
    specs: Sequence[str],
    *,
    dataset_dir: str | Path | None = None,
    columns: ColumnNames = ColumnNames(),  # noqa: B008
    train_on: str = "all",
    seed: int = 42,
    skip_bad: bool = False,
    kind: Kind | None = "answers",
    ranked: str = "all",
) -> Data:
    """Return data in silence; the parameters and errors are those of :func:`opening`."""
    from ..console import drain

    return drain(
        opening(
            specs,
            dataset_dir=dataset_dir,
            columns=columns,
            train_on=train_on,
            seed=seed,
            skip_bad=skip_bad,
            kind=kind,
            ranked=ranked,
        )
    )


def opening(
    specs: Sequence[str],
    *,
    dataset_dir: str | Path | None = None,
    columns: ColumnNames = ColumnNames(),  # noqa: B008
    train_on: str = "all",
    seed: int = 42,
    skip_bad: bool = False,
    kind: Kind | None = "answers",
    ranked: str = "all",
) -> Generator[Progress, None, Data]:
    """Find, read through and mix files of data.

    :param specs: files, folders, or names in ``dataset_info.json``; ``FILE#500`` takes 500 samples
        of it, ``FILE@0.3`` gives it this weight in the mixture.
    :param dataset_dir: where ``dataset_info.json`` lies; None: in ``data``, if there is one.
    :param columns: the columns of questions and answers, where they are not detected.
    :param train_on: which answers are learnt: ``all`` of a conversation or the ``last``.
    :param seed: of what is picked.
    :param skip_bad: leave out rows that are no samples, rather than refuse them all.
    :param kind: what is wanted: ``answers`` to learn, ``preferences``, or ``verdicts``, which
        preferences make, too; None: what the files hold, all of them the same.
    :param ranked: which pairs ranked answers make: ``all``, or the ``best`` with each other one.
    :raises DataError: if something does not exist, cannot be read or holds bad rows.
    :raises UsageError: if nothing is named, or an amount makes no sense.
    """
    _check_choices(train_on, ranked)
    found = wanted(specs, Listing.read(dataset_dir), kind)
    parts: list[Part] = []
    for number, each in enumerate(found):
        source = open_source(each.path, over(each.names, columns), kind)
        if parts and parts[0].source.holds != source.holds:
            first = parts[0].source
            said = _MIXED.format(first.path, first.holds, source.path, source.holds)
            raise DataError(said)
        part = yield from _read_through(source, train_on, ranked)
        parts.append(replace(part, passes=(_taken(part, each.take, f"{seed} {number}"),)))
    if not skip_bad:
        refuse_bad(parts)
    for part in parts:
        if not part.count:
            raise DataError(f"no row of {part.source.path} is a sample: {part.bad[0].reason}")
    return Data(tuple(_mixed(parts, [each.weight for each in found], seed)), train_on, ranked)


def _check_choices(train_on: str, ranked: str) -> None:
    if train_on not in TRAIN_ON:
        raise UsageError(f"train_on must be one of {', '.join(TRAIN_ON)}, got {train_on!r}")
    if ranked not in RANKED:
        raise UsageError(f"ranked must be one of {', '.join(RANKED)}, got {ranked!r}")


_MIXED = "{} holds {} and {} holds {}; name one kind of data"


def refuse_bad(parts: Sequence[Part]) -> None:
    """Refuse data with bad rows.

    :raises DataError: listing them.
    """
    bad = [row for part in parts for row in part.bad]
    if not bad:
        return
    skipped = sum(part.skipped for part in parts)
    total = skipped + sum(part.count for part in parts)
    more = f"\n  and {skipped - _NAMED:,} more" if skipped > _NAMED else ""
    raise DataError(
        f"{skipped:,} of {total:,} rows cannot be learnt:\n  "
        + "\n  ".join(map(str, bad[:_NAMED]))
        + f"{more}\ncorrect them ('glmkit data check' lists all), or leave them out: --skip-bad"
    )


def over(listed: ColumnNames, given: ColumnNames) -> ColumnNames:
    """Return the columns of a listing, or what somebody names in their place."""
    tags = listed.tags if given.tags == ColumnNames().tags else given.tags
    return ColumnNames(**{**listed.named, **given.named}, tags=tags)


def _read_through(source: Source, train_on: str, ranked: str) -> Generator[Progress, None, Part]:
    """Count the samples of a file, and find its bad rows."""
    count, skipped = 0, 0
    bad: list[BadRow] = []
    for number, row in enumerate(source.read(train_on, ranked), 1):
        if isinstance(row, BadRow):
            skipped += 1
            bad += [row] if skipped <= _KEPT else []
        else:
            count += 1
        if number % _EVERY == 0:
            yield Progress(f"reading {source.name}", number)
    return Part(source, count, skipped, tuple(bad), _digest(source.path), ())


def _digest(path: Path) -> str:
    whole = hashlib.sha256()
    with path.open("rb") as file:
        for block in iter(lambda: file.read(_READ), b""):
            whole.update(block)
    return whole.hexdigest()


def _taken(part: Part, take: int | None, seed: str) -> bytes:
    if take is not None and take > part.count:
        raise UsageError(
            f"{part.source.path}#{take}: it has {part.count:,} samples; take that many at most"
        )
    return _picked(part.count, part.count if take is None else take, seed)


def _picked(count: int, take: int, seed: str) -> bytes:
    """Return 1 for what is taken and 0 for what is not."""
    taken = bytearray(count)
    for at in random.Random(seed).sample(range(count), take):
        taken[at] = 1
    return bytes(taken)


def _mixed(parts: Sequence[Part], weights: Sequence[float | None], seed: int) -> Iterator[Part]:
    """Yield files in the shares that their weights give them, as many samples as there were."""
    if not any(weights):
        yield from parts
        return
    shares = [1.0 if each is None else each for each in weights]
    total = sum(map(len, parts))
    for number, (part, share) in enumerate(zip(parts, shares, strict=True)):
        due = max(1, round(total * share / sum(shares)))
        yield replace(part, passes=_repeated(part.passes[0], due, f"{seed} mix {number}"))


def _repeated(taken: bytes, due: int, seed: str) -> tuple[bytes, ...]:
    """Return so many whole passes and part of one that there are ``due`` samples."""
    whole, rest = divmod(due, taken.count(1))
    picked = iter(_picked(taken.count(1), rest, seed))
    last = bytes(next(picked) if each else 0 for each in taken)
    return (taken,) * whole + ((last,) if rest else ())


def _s(count: int) -> str:
    return "row" if count == 1 else "rows"


def _any(passes: Sequence[bytes]) -> bytes:
    return bytes(map(max, zip(*passes, strict=True)))


def _without(taken: bytes, out: bytes) -> bytes:
    return bytes(each and not gone for each, gone in zip(taken, out, strict=True))
