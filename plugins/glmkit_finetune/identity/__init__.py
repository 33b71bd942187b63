"""The self-recognition set: who a model is and who made it, asked in many ways."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from itertools import cycle
from pathlib import Path
from types import ModuleType
from typing import Any

from glmkit import DataError, UsageError, language_of
from glmkit.dataset.sources import rows_in

from . import chinese, english

LANGUAGES: dict[str, ModuleType] = {"zh": chinese, "en": english}
_HOLE = re.compile(r"\{\{\s*(name|author)\s*\}\}|<(NAME|AUTHOR)>", re.IGNORECASE)
"""What stands for the name and the maker in files that are passed around."""
Row = dict[str, Any]


@dataclass(frozen=True)
class Identity:
    """Who a model shall be.

    :raises UsageError: if a name is empty.
    """

    name: str
    author: str

    def __post_init__(self) -> None:
        for what in ("name", "author"):
            if not getattr(self, what).strip():
                raise UsageError(f"the {what} of the model is empty; give --{what}")

    def fill(self, value: Any) -> Any:  # noqa: ANN401
        """Return a row, or any part of it, with the names in the places that were left for them."""
        if isinstance(value, str):
            return _HOLE.sub(lambda found: self._named(found[1] or found[2]), value)
        if isinstance(value, dict):
            return {key: self.fill(each) for key, each in value.items()}
        return [self.fill(each) for each in value] if isinstance(value, list) else value

    def _named(self, what: str) -> str:
        return self.name if what.lower() == "name" else self.author


def identity_rows(
    identities: Mapping[str, Identity], languages: Iterable[str], *, others: bool = True
) -> Iterator[Row]:
    """Yield our own set, as alpaca rows.

    :param identities: who the model shall be in each language of :data:`LANGUAGES`.
    :param languages: those to ask in.
    :param others: with questions that sound alike and are about others, so that a model does not
        come to name itself whatever it is asked.
    :raises UsageError: if a language is unknown, or none is named.
    """
    for language in _known(languages):
        for row in _rows(LANGUAGES[language], others):
            yield identities[language].fill(row)


def _known(languages: Iterable[str]) -> list[str]:
    """Return the languages.

    :raises UsageError: if one is unknown, or there is none.
    """
    chosen = list(languages)
    unknown = next((each for each in chosen if each not in LANGUAGES), None)
    if unknown is not None or not chosen:
        raise UsageError(
            f"there are no questions in {unknown or 'no language'!r}; there are in "
            f"{', '.join(LANGUAGES)}"
        )
    return chosen


def _text(value: Any) -> str:  # noqa: ANN401
    """Return all texts in a row, or in any part of it, without the places that are filled in."""
    if isinstance(value, str):
        return _HOLE.sub("", value)
    if isinstance(value, dict):
        value = list(value.values())
    return " ".join(map(_text, value)) if isinstance(value, list) else ""


def _rows(written: ModuleType, others: bool) -> Iterator[Row]:
    for questions, answers in written.GROUPS:
        for question, answer in zip(questions, cycle(answers), strict=False):
            yield _row(question, answer)
    for before, question, answer in written.FOLLOWING:
        yield _row(question, answer) | {"history": [list(each) for each in before]}
    if others:
        yield from (_row(question, answer) for question, answer in written.OTHERS)


def _row(question: str, answer: str) -> Row:
    return {"instruction": question, "input": "", "output": answer}


def filled_rows(
    path: Path, identities: Mapping[str, Identity], languages: Iterable[str] = ("zh", "en")
) -> Iterator[Row]:
    """Yield the rows of a file with the names in place of ``{{name}}`` and ``{{author}}``.

    :param identities: who the model shall be in rows of each language; what is not Chinese takes
        that of English.
    :param languages: rows of others are left out.
    :raises DataError: if the file cannot be read, or has no such places.
    """
    found, chosen = False, _known(languages)
    for row in rows_in(path):
        if row.error is not None:
            raise DataError(f"{path}, {row.place}: {row.error}")
        language = "zh" if language_of(_text(row.columns)) == "zh" else "en"
        if language not in chosen:
            continue
        filled = identities[language].fill(row.columns)
        found = found or filled != row.columns
        yield filled
    if not found:
        raise DataError(f"{path} has no {{{{name}}}} or {{{{author}}}} to fill in")
