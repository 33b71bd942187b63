"""How well a knowledge base answers a file of questions.

A question file has one JSON object a line: ``question``, ``language``, ``answer`` (a text that a
right answer contains) and ``source`` (the file that holds it, relative to the folder); ``answer``
and ``source`` are null where the folder cannot answer.

Metrics, over all questions and per language (null where there is nothing to count):

``questions``         how many
``hit_at_1``          share of answerable questions whose best passage is from the expected file
``hit_at_5``          the same for the first five passages, before any threshold
``mrr``               mean of 1 / rank of the first passage from the expected file, among five
``answer_contains``   share of answerable questions whose answer contains the expected text,
                      ignoring case and blanks; a refused one does not (null without answers)
``refusal_precision`` share of the refused questions that are indeed unanswerable
``refusal_recall``    share of the unanswerable questions that are refused
``query_ms_p50``      median time to find and judge the passages of a question, milliseconds
"""

from __future__ import annotations

import json
import statistics
from collections.abc import Callable, Generator, Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from glmkit import ConfigError, DataError, Progress, refuse_unknown

from .retrieve import Retriever

DEPTH = 5
_FIELDS = ("question", "language", "answer", "source")


@dataclass(frozen=True)
class Question:
    """One line of a question file."""

    question: str
    language: str
    answer: str | None
    source: str | None

    @property
    def answerable(self) -> bool:
        """Say whether the folder can answer."""
        return self.source is not None


@dataclass(frozen=True)
class Outcome:
    """What became of one question."""

    question: Question
    paths: tuple[str, ...]
    """Where the best passages are from, best first."""
    score: float
    """The best passage's score, 0 if there was none."""
    refused: bool
    elapsed_ms: float
    answer: str | None = None
    """The answer given, None where none was asked for."""

    @property
    def rank(self) -> int | None:
        """Return the rank, from 1, of the expected file; None if it was not found."""
        found = self.question.source in self.paths
        return self.paths.index(self.question.source or "") + 1 if found else None

    @property
    def contains(self) -> bool:
        """Say whether the answer holds the expected text."""
        return _folded(self.question.answer or "") in _folded(self.answer or "")


@dataclass(frozen=True)
class Figures:
    """The metrics of some questions; the module's docstring defines them."""

    hit_at_1: float | None
    hit_at_5: float | None
    mrr: float | None
    answer_contains: float | None
    refusal_precision: float | None
    refusal_recall: float | None
    questions: int
    query_ms_p50: float | None

    @classmethod
    def of(cls, outcomes: Sequence[Outcome]) -> Figures:
        """Compute the metrics of ``outcomes``."""
        answerable = [each for each in outcomes if each.question.answerable]
        answered = [each for each in answerable if each.answer is not None]
        refused = [each for each in outcomes if each.refused]
        missing = [each for each in outcomes if not each.question.answerable]
        times = [each.elapsed_ms for each in outcomes]
        return cls(
            hit_at_1=_share(each.rank == 1 for each in answerable),
            hit_at_5=_share(each.rank is not None for each in answerable),
            mrr=_mean([1 / each.rank if each.rank else 0.0 for each in answerable]),
            answer_contains=_share(each.contains for each in answered),
            refusal_precision=_share(not each.question.answerable for each in refused),
            refusal_recall=_share(each.refused for each in missing),
            questions=len(outcomes),
            query_ms_p50=round(statistics.median(times), 1) if times else None,
        )


@dataclass(frozen=True)
class Report:
    """The outcomes of a question file."""

    outcomes: tuple[Outcome, ...]

    @property
    def languages(self) -> list[str]:
        """Return the languages asked in, sorted."""
        return sorted({each.question.language for each in self.outcomes})

    def figures(self, language: str | None = None) -> Figures:
        """Return the metrics of one language, or of all questions."""
        wanted = [each for each in self.outcomes if language in (None, each.question.language)]
        return Figures.of(wanted)

    def as_dict(self) -> dict[str, Any]:
        """Return ``{"overall": {...}, "languages": {"zh": {...}, ...}}``."""
        languages = {each: asdict(self.figures(each)) for each in self.languages}
        return {"overall": asdict(self.figures()), "languages": languages}


def read_questions(path: Path) -> list[Question]:
    """Read a question file.

    :raises DataError: if it cannot be read or is empty; a bad line is named by its number.
    """
    try:
        lines = path.read_text(encoding="utf-8-sig").splitlines()
    except OSError as error:
        raise DataError(f"cannot read questions from {path}: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise DataError(f"{path} is not UTF-8 text (byte {error.start}); convert it") from error
    found = [
        _question(line, f"{path}, line {number}")
        for number, line in enumerate(lines, 1)
        if line.strip()
    ]
    if not found:
        raise DataError(f"{path} has no questions; write one JSON object a line")
    return found


def _question(line: str, where: str) -> Question:
    try:
        value = json.loads(line)
    except ValueError as error:
        raise DataError(f"{where}: not JSON ({error})") from error
    if not isinstance(value, dict):
        raise DataError(f"{where}: expected an object with {', '.join(_FIELDS)}")
    _check_keys(value, where)
    for name in ("question", "language"):
        if not isinstance(value[name], str) or not value[name].strip():
            raise DataError(f"{where}: {name!r} must be a non-empty text, got {value[name]!r}")
    for name in ("answer", "source"):
        if not isinstance(value[name], (str, type(None))):
            raise DataError(f"{where}: {name!r} must be a text or null, got {value[name]!r}")
    if (value["answer"] is None) != (value["source"] is None):
        raise DataError(f"{where}: 'answer' and 'source' must both be texts or both be null")
    return Question(**value)


def _check_keys(value: dict[str, Any], where: str) -> None:
    try:
        refuse_unknown(value, set(_FIELDS), where=where)
    except ConfigError as error:
        raise DataError(str(error)) from error
    missing = [name for name in _FIELDS if name not in value]
    if missing:
        raise DataError(f"{where}: {', '.join(map(repr, missing))} missing; null if unanswerable")


def evaluate(
    retriever: Retriever,
    questions: Sequence[Question],
    *,
    threshold: float,
    answer: Callable[[str], str] | None = None,
) -> Generator[Progress, None, Report]:
    """Ask every question on its own; the generator returns the :class:`Report`.

    :param answer: answers a question from scratch; None measures retrieval and refusal only.
    """
    outcomes: list[Outcome] = []
    for question in questions:
        yield Progress("asking questions", len(outcomes), len(questions))
        found = retriever.retrieve(question.question, top_k=DEPTH)
        score = found.passages[0].score if found.passages else 0.0
        refused = score < threshold or not found.passages
        text = answer(question.question) if answer and question.answerable else None
        paths = tuple(passage.path for passage in found.passages)
        outcomes.append(Outcome(question, paths, score, refused, found.elapsed_ms, text))
    yield Progress("asking questions", len(outcomes), len(questions))
    return Report(tuple(outcomes))


def _folded(text: str) -> str:
    return "".join(text.casefold().split())


def _mean(values: Sequence[float]) -> float | None:
    return round(sum(values) / len(values), 4) if values else None


def _share(values: Iterable[bool]) -> float | None:
    return _mean([float(value) for value in values])
