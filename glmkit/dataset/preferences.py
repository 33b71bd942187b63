"""From a row to answers that are compared: what was asked, the better answer, the worse one."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from itertools import combinations
from typing import Any

from ..errors import DataError
from ..tables.files import Place
from ..types import Message
from .columns import ColumnNames
from .order import check_order
from .pairs import asked_of, dialogue_of
from .samples import Preference
from .turns import offering, text_of, turns_of

Messages = list[Message]


def preferences_of(
    row: Mapping[str, Any],
    names: ColumnNames,
    ranked: str = "all",
    source: str = "",
    place: Place = Place(),  # noqa: B008
) -> Iterator[Preference | DataError]:
    """Yield the pairs that a row makes: one, or several where it ranks several answers.

    :param ranked: ``all`` pairs of ranked answers, or the ``best`` against each of the others.
    :return: in the place of a pair that is none, why.
    :raises DataError: if nothing in the row can be compared.
    """
    margin = _margin(row)
    for prompt, chosen, rejected in _compared(row, names, ranked):
        try:
            for each, name in ((chosen, "chosen"), (rejected, "rejected")):
                if not each.content.strip() and not each.tool_calls:
                    raise DataError(f"the {name} answer is empty")
                check_order([*prompt, each])
            yield Preference(tuple(prompt), chosen, rejected, margin, source, place)
        except DataError as error:
            yield error


def _compared(
    row: Mapping[str, Any], names: ColumnNames, ranked: str
) -> Iterator[tuple[Messages, Message, Message]]:
    """Yield what was asked and two answers to it, the better one first."""
    if names.rejected is None:
        prompt, answers = _prompt(row, names), _ranking(row[names.chosen or ""], names)
        yield from ((prompt, *both) for both in _pairs(answers, ranked))
        return
    chosen = _said(row[names.chosen or ""], names)
    rejected = _said(row[names.rejected], names)
    if names.chosen == names.messages or not _asks(names):
        prompt, chosen, rejected = _parted(chosen, rejected)
        prompt = _completed(prompt, row, names)
    else:
        prompt = _prompt(row, names)
    yield prompt, _only(chosen, "chosen"), _only(rejected, "rejected")


def _asks(names: ColumnNames) -> bool:
    """Tell whether the question stands in a column of its own."""
    return bool(names.prompt or names.messages)


def _pairs(answers: Sequence[Message], ranked: str) -> Iterator[tuple[Message, Message]]:
    if ranked == "best":
        yield from ((answers[0], each) for each in answers[1:])
    else:
        yield from combinations(answers, 2)


def _ranking(value: object, names: ColumnNames) -> Messages:
    """Return ranked answers, the best first."""
    if not isinstance(value, list) or len(value) < 2:
        raise DataError(f"two answers or more are compared, the best first, got {value!r:.60}")
    return [_only(_said(each, names), f"answer {at}") for at, each in enumerate(value, 1)]


def _said(value: object, names: ColumnNames) -> Messages:
    """Return an answer, or a whole conversation that ends with one, from a column."""
    if isinstance(value, Mapping):
        value = [value]
    if isinstance(value, list):
        return [each.message for each in turns_of(value, names.tags)]
    text = text_of(value, "an answer")
    if names.rejected is not None and not _asks(names):
        return [each.message for each in dialogue_of(text)]
    return [Message("assistant", text)]


def _prompt(row: Mapping[str, Any], names: ColumnNames) -> Messages:
    """Return what is said before the answers, from columns of its own."""
    whole = row.get(names.messages or names.prompt or "")
    if names.messages or isinstance(whole, list):
        beside = {"system": row.get(names.system or ""), "tools": row.get(names.tools or "")}
        turns = turns_of(whole, names.tags, **beside)
    else:
        turns = offering(asked_of(row, names), row.get(names.tools or ""))
    return [each.message for each in turns]


def _parted(chosen: Messages, rejected: Messages) -> tuple[Messages, Messages, Messages]:
    """Part two conversations into what they share and how they end.

    Where one is an answer alone, it follows all but the last of the other's messages.
    """
    if len(rejected) == 1 and rejected[0].role == "assistant":
        return chosen[:-1], chosen[-1:], rejected
    most = min(len(chosen), len(rejected)) - 1
    same = next((at for at in range(most) if chosen[at] != rejected[at]), most)
    return chosen[:same], chosen[same:], rejected[same:]


def _completed(prompt: Messages, row: Mapping[str, Any], names: ColumnNames) -> Messages:
    """Add what the row has beside a conversation: a system message, tools."""
    if not prompt:
        raise DataError(
            "nothing was asked: chosen and rejected begin differently, and there is no prompt"
        )
    given: list[object] = [{"role": "user", "content": ""}]
    beside = {"system": row.get(names.system or ""), "tools": row.get(names.tools or "")}
    told = [each.message for each in turns_of(given, names.tags, **beside)[:-1]]
    return prompt if prompt[0].role == "system" else [*told, *prompt]


def _only(messages: Messages, name: str) -> Message:
    if len(messages) != 1:
        raise DataError(
            f"{name} has {len(messages)} messages behind what both share; single answers to the "
            "same question are compared"
        )
    return messages[0]


def _margin(row: Mapping[str, Any]) -> float | None:
    """Return how much better the chosen answer is, where a row says so."""
    value = row.get("margin")
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, (int, float, str)):
        raise DataError(f"margin must be a number, got {value!r:.40}")
    try:
        return float(value)
    except ValueError as error:
        raise DataError(f"margin must be a number, got {value!r:.40}") from error
