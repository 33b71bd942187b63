"""A job that scores data, row by row; what is written to a file is not done again."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Generator, Iterable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, TextIO

from glmkit import DataError, Progress, UsageError
from glmkit.dataset import Data, Preference, Sample
from glmkit.dataset.converting import FORMATS, PAIR_FORMATS

from .accuracy import Accuracy

if TYPE_CHECKING:
    from .scoring import RewardModel

_AT_ONCE = 32
"""Rows that are scored and written together."""
Row = Sample | Preference
Scores = tuple[float, ...]
"""One of an answer; of a pair the better one's and the worse one's."""


@dataclass(frozen=True)
class Totals:
    """What a job came to."""

    rows: int
    mean: float
    """Of the scores; of pairs, of the better answers'."""
    accuracy: Accuracy | None = None
    """Of pairs."""

    def as_dict(self) -> dict[str, Any]:
        """Return it, ready for JSON."""
        beside = {} if self.accuracy is None else self.accuracy.as_dict()
        return {"rows": self.rows, "mean": self.mean, **beside}

    @property
    def text(self) -> str:
        """Return it for a person."""
        if self.accuracy is not None:
            return self.accuracy.text
        return f"{self.rows:,} answers: mean score {self.mean:+.3f}"


def score_rows(
    model: RewardModel,
    data: Data,
    output: Path | None,
    *,
    run: Path,
    overwrite: bool = False,
) -> Generator[Progress, None, Totals]:
    """Score all rows, and write them with their scores where a file is given.

    :param output: of JSON lines. One that an earlier job of the same data and run has begun is
        gone on with.
    :param run: the folder of the reward model.
    :raises UsageError: if the file is another job's.
    :raises DataError: if a conversation cannot be scored, or the file cannot be written.
    """
    found: list[Scores] = []
    with ExitStack() as held:
        file = None
        if output is not None:
            found = _begun(output, {"data": data.fingerprint, "run": _state(run)}, overwrite)
            file = held.enter_context(output.open("a", encoding="utf-8"))
        rows = islice(_rows(data), len(found), None)
        for some in iter(lambda: list(islice(rows, _AT_ONCE)), []):
            new = _scored(model, some)
            _write(file, zip(some, new, strict=True))
            found += new
            yield Progress("scoring", len(found), len(data))
    return _totals(data, found)


def _rows(data: Data) -> Iterator[Row]:
    if data.compares:
        yield from data.preferences()
    else:
        yield from data.samples()


def _scored(model: RewardModel, rows: list[Row]) -> list[Scores]:
    parts = [(each.messages,) if isinstance(each, Sample) else each.conversations for each in rows]
    found = iter(model.score([each for part in parts for each in part]))
    return [tuple(next(found) for _ in part) for part in parts]


def _write(file: TextIO | None, rows: Iterable[tuple[Row, Scores]]) -> None:
    if file is None:
        return
    for row, scores in rows:
        if isinstance(row, Sample):
            line = FORMATS["messages"](row) | {"score": scores[0]}
        else:
            said = PAIR_FORMATS["messages"](row)
            line = said | {"chosen_score": scores[0], "rejected_score": scores[1]}
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
    names = ("score",) if "score" in line else ("chosen_score", "rejected_score")
    return tuple(float(line[each]) for each in names)


def _state(run: Path) -> str:
    """Return a digest of what the run trained."""
    whole = hashlib.sha256()
    for name in ("reward_head.safetensors", "adapter_model.safetensors", "run.json"):
        file = run.expanduser() / name
        if file.is_file():
            whole.update(name.encode() + file.read_bytes())
    return whole.hexdigest()


def _totals(data: Data, found: list[Scores]) -> Totals:
    if not found:
        raise DataError("there are no rows to score")
    first = [each[0] for each in found]
    mean = sum(first) / len(found)
    if not data.compares:
        return Totals(len(found), mean)
    pairs = list(data.preferences())
    return Totals(len(found), mean, Accuracy.of(pairs, first, [each[1] for each in found]))
