"""Questions with their answers in columns, and the turns that came before in one more."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any

from ..errors import DataError
from ..tables.files import parsed_json
from ..types import Message
from .columns import ColumnNames
from .turns import Turn, offering, text_of, turns_of

_SPEAKER = re.compile(r"(?:^|\n)\s*(Human|Assistant)\s*[:：][ \t]*")
_LEFT_OPEN = re.compile(r"\A\s*Human\s*[:：].*\n\s*Assistant\s*[:：]\s*\Z", re.DOTALL)


def pair_of(row: Mapping[str, Any], names: ColumnNames) -> list[Turn]:
    """Return the conversation of a row: the system message, earlier turns, question, answer.

    :raises DataError: if the row lacks a column, or one holds something else.
    """
    prompt, response = _value(row, names.prompt), _value(row, names.response)
    if isinstance(prompt, list) or isinstance(response, list):
        return turns_of(
            [*_as_messages(prompt, "user"), *_as_messages(response, "assistant")], names.tags
        )
    turns = asked_of(row, names)
    return offering(
        [*turns, Turn(Message("assistant", _text(row, names.response)))],
        row.get(names.tools or ""),
    )


def asked_of(row: Mapping[str, Any], names: ColumnNames) -> list[Turn]:
    """Return what is said before the answer: the system message, earlier turns, the question.

    :raises DataError: if the row lacks a column, or one holds something else.
    """
    turns: list[Turn] = []
    system = _text(row, names.system)
    if system:
        turns.append(Turn(Message("system", system)))
    turns += _history(row.get(names.history or ""))
    return [*turns, *_question(_text(row, names.prompt), _text(row, names.query))]


def dialogue_of(text: str) -> list[Turn]:
    """Return the turns of a text in which ``Human:`` and ``Assistant:`` say who speaks.

    :raises DataError: if they do not.
    """
    before, *parts = _SPEAKER.split(text)
    if before.strip() or not parts:
        raise DataError(
            f"nobody says who speaks: expected 'Human: ...', 'Assistant: ...', got {text!r:.60}"
        )
    return [
        Turn(Message("user" if speaker == "Human" else "assistant", said.strip()))
        for speaker, said in zip(parts[::2], parts[1::2], strict=True)
    ]


def _value(row: Mapping[str, Any], name: str | None) -> object:
    if name is None or name not in row:
        raise DataError(f"lacks the column {name!r}; it has {', '.join(map(repr, row)) or 'none'}")
    return row[name]


def _text(row: Mapping[str, Any], name: str | None) -> str:
    return "" if name is None else text_of(row.get(name), f"the column {name!r}")


def _as_messages(value: object, role: str) -> list[object]:
    return value if isinstance(value, list) else [{"role": role, "content": value}]


def _question(prompt: str, query: str) -> Iterator[Turn]:
    """Yield what was asked; belle's conversations are one text that ends in ``Assistant:``."""
    if not query and _LEFT_OPEN.match(prompt):
        parts = _SPEAKER.split(prompt)[1:-2]
        for speaker, said in zip(parts[::2], parts[1::2], strict=True):
            role = "user" if speaker == "Human" else "assistant"
            yield Turn(Message("user" if role == "user" else "assistant", said.strip()))
    else:
        yield Turn(Message("user", "\n".join(each for each in (prompt, query) if each)))


def _history(value: object) -> Iterator[Turn]:
    if isinstance(value, str):
        value = _parsed(value) if value.strip() else None
    if value is None:
        return
    if not isinstance(value, list):
        raise DataError(f"the history must be [[question, answer], ...], got {value!r:.60}")
    for number, pair in enumerate(value, 1):
        both = list(pair.values()) if isinstance(pair, Mapping) else pair
        if not isinstance(both, list) or len(both) != 2:
            raise DataError(
                f"turn {number} of the history must be [question, answer], got {pair!r:.60}"
            )
        yield Turn(Message("user", text_of(both[0], "a question of the history")))
        yield Turn(Message("assistant", text_of(both[1], "an answer of the history")))


def _parsed(text: str) -> Any:  # noqa: ANN401
    try:
        return parsed_json(text)
    except ValueError as error:
        raise DataError(f"the history must be JSON, got {text!r:.60} ({error})") from error
