"""From a row to an answer with a verdict: what was asked, what was said, whether that is good."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from ..errors import DataError
from ..tables.files import Place
from .columns import ColumnNames
from .order import check_order
from .samples import Preference, Verdict
from .turns import Turn

_SAID = {"true": True, "false": False, "1": True, "0": False, "1.0": True, "0.0": False}


def is_verdict(value: object) -> bool:
    """Tell whether a value can only be meant as one: true or false, as a word, too."""
    return isinstance(value, bool) or str(value).strip().lower() in ("true", "false")


def said(value: object) -> bool | None:
    """Return a verdict, which may be a word or a number, too; None: it is none."""
    return _SAID.get(str(value).strip().lower())


def verdict_of(
    row: Mapping[str, Any],
    turns: Sequence[Turn],
    names: ColumnNames,
    source: str = "",
    place: Place = Place(),  # noqa: B008
) -> Verdict:
    """Return the answer that ends a row's conversation, with what the row says of it.

    :raises DataError: if there is no answer, or nothing is said of it.
    """
    messages = [each.message for each in turns]
    check_order(messages)
    *prompt, answer = messages
    if not answer.content.strip() and not answer.tool_calls:
        raise DataError("the answer is empty")
    return Verdict(tuple(prompt), answer, _good(row, names.label or ""), source, place)


def _good(row: Mapping[str, Any], column: str) -> bool:
    value = row.get(column)
    found = said(value)
    if found is None:
        raise DataError(f"{column} must be true or false, got {value!r:.40}")
    return found


def unpaired(pairs: Iterable[Preference | DataError]) -> Iterator[Verdict | DataError]:
    """Yield the answers of a row by themselves: the better one as good, the worse ones as not.

    :param pairs: of one row; of ranked answers those of the best with each other one.
    """
    best = None
    for each in pairs:
        if isinstance(each, DataError):
            yield each
            continue
        if best != each.chosen:
            best = each.chosen
            yield Verdict(each.prompt, best, True, each.source, each.place)
        yield Verdict(each.prompt, each.rejected, False, each.source, each.place)
