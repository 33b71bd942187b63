"""A job that scores data, row by row; what is written to a file is not done again."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Generator, Iterable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, TextIO

from glmkit import DataError, Progress, UsageError
from glmkit.dataset import Data, Preference, Sample
from glmkit.dataset.converting import as_row
from glmkit.dataset.samples import Row, compared

from .accuracy import Accuracy

if TYPE_CHECKING:
    from glmkit.training.examples import Example

    from .scoring import RewardModel

_AT_ONCE = 32
"""Rows that are scored and written together."""
Scores = tuple[float, ...]
"""One of an answer; of a pair the better one's and the worse one's."""
_NAMES = {1: ("score",), 2: ("chosen_score", "rejected_score")}
"""What they are called in a file, by how many there are."""


@dataclass(frozen=True)
class Totals:
    """What a job came to."""

    rows: int
    mean: float
    """Of the scores; of pairs, of the better answers'."""
    accuracy: Accuracy | None = None
    """Of pairs."""
    skipped: int = 0
    """Rows that the model cannot read."""

    def as_dict(self) -> dict[str, Any]:
        """Return it, ready for JSON."""
        beside = {} if self.accuracy is None else self.accuracy.as_dict()
        return {"rows": self.rows, "mean": self.mean, "skipped": self.skipped, **beside}

    @property
    def text(self) -> str:
        """Return it for a person."""
        left = "1 row was" if self.skipped == 1 else f"{self.skipped:,} rows were"
        more = f"\n{left} skipped: no room for an answer" if self.skipped else ""
        if self.accuracy is not None:
            return self.accuracy.text + more
        return f"{self.rows:,} answers: mean score {self.mean:+.3f}{more}"


def score_rows(
    model: RewardModel,
    data: Data,
    output: Path | None,
    *,
    run: Path,
    overwrite: bool = False,
    skip_bad: bool = False,
) -> Generator[Progress, None, Totals]:
    """Score all rows, and write them with their scores where a file is given.

    :param output: of JSON lines. One that an earlier job of the same data and run has begun is
        gone on with.
    :param run: the folder of the reward model.
    :param skip_bad: leave out rows that cannot be scored.
    :raises UsageError: if the file is another job's.
    :raises DataError: if a row cannot be scored, or the file cannot be written; names the row.
    """
    found: list[Scores] = []
    with ExitStack() as held:
        file = None
        if output is not None:
            found = _begun(output, {"data": data.fingerprint, "run": _state(run)}, overwrite)
            file = held.enter_context(output.open("a", encoding="utf-8"))
        skipped: set[int] | None = set() if skip_bad else None
        rows = islice(_readable(model, data, skipped), len(found), None)
        for some in iter(lambda: list(islice(rows, _AT_ONCE)), []):
            new = _scored(model, [examples for _, examples in some])
            _write(file, zip((row for row, _ in some), new, strict=True))
            found += new
            yield Progress("scoring", len(found), len(data))
    return _totals(data, found, skipped or set())


def _readable(
    model: RewardModel, data: Data, skipped: set[int] | None
) -> Iterator[tuple[Row, list[Example]]]:
    """Yield rows with their answers as the model reads them.

    :param skipped: takes the numbers, from 0, of rows that cannot be read; None: raise.
    """
    for number, row in enumerate(data.rows()):
        try:
            yield row, [model.read(each) for each in _sides(row)]
        except DataError as error:
            if skipped is None:
                raise DataError(
                    f"{row.source}, {row.place}: {error}; shorten it, or leave it out: --skip-bad"
                ) from error
            skipped.add(number)


def _sides(row: Row) -> list[Sample]:
    """Return the answers of a row as a run reads them."""
    if isinstance(row, Preference):
        return [compared(row, which) for which in (0, 1)]
    if not isinstance(row, Sample):
        return [row.sample]
    return [replace(row, weights=(*(0.0 for _ in row.messages[1:]), 1.0))]


def _scored(model: RewardModel, rows: list[list[Example]]) -> list[Scores]:
    examples = (each for row in rows for each in row)
    found = (each for part in model.asked(examples) for each in part)
    return [tuple(islice(found, len(row))) for row in rows]


def _write(file: TextIO | None, rows: Iterable[tuple[Row, Scores]]) -> None:
    if file is None:
        return
    for row, scores in rows:
        names = _NAMES[len(scores)]
        line = as_row(row, "messages") | dict(zip(names, scores, strict=True))
        file.write(json.dumps(line, ensure_ascii=False) + "\n")
    file.flush()


def _begun(output: Path, job: dict[str, str], overwrite: bool) -> list[Scores]:
    """Return the scores that are written already, and leave whole lines only.

    :raises UsageError: if the file is there, and not of this job.
    """
    aside = output.with_name(f".{output.name}.job.json")
    if not output.exists() or overwrite:
        output.parent.mkdir(parents=True, exist_ok=True)
        aside.write_text(json.dumps(job), encoding="utf-8")
        output.write_text("", encoding="utf-8")
        return []
    if not aside.is_file() or json.loads(aside.read_text(encoding="utf-8")) != job:
        raise UsageError(
            f"{output} exists, and is not of a job with this data and reward model; give another "
            "name, or --overwrite"
        )
    text = output.read_bytes()
    whole = text[: text.rfind(b"\n") + 1]
    output.write_bytes(whole)
    return [_scores(json.loads(line)) for line in whole.splitlines()]


def _scores(line: dict[str, Any]) -> Scores:
    names = _NAMES[1 if "score" in line else 2]
    return tuple(float(line[each]) for each in names)


def _state(run: Path) -> str:
    """Return a digest of what the run trained."""
    whole = hashlib.sha256()
    for name in ("reward_head.safetensors", "adapter_model.safetensors", "run.json"):
        file = run.expanduser() / name
        if file.is_file():
            whole.update(name.encode() + file.read_bytes())
    return whole.hexdigest()


def _totals(data: Data, found: list[Scores], skipped: set[int]) -> Totals:
    if not found:
        what = (
            f" that leave room for an answer; {len(skipped):,} do not" if skipped else " to score"
        )
        raise DataError(f"there are no rows{what}")
    first = [each[0] for each in found]
    mean = sum(first) / len(found)
    if data.holds != "preferences":
        return Totals(len(found), mean, skipped=len(skipped))
    pairs = [each for at, each in enumerate(data.preferences()) if at not in skipped]
    accuracy = Accuracy.of(pairs, first, [each[1] for each in found])
    return Totals(len(found), mean, accuracy, len(skipped))
