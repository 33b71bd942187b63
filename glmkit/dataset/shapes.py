"""The formats that are known by their columns: a frozen table, tried in order."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

from .columns import ColumnNames, Tags
from .verdicts import is_verdict, said

Row = Mapping[str, Any]
Kind = Literal["pairs", "turns", "preference", "verdict", "text"]


@dataclass(frozen=True)
class Shape:
    """One format.

    Plain text has a shape, too, so that it is known for what it is and refused; preference data
    and verdicts are refused where answers to learn are wanted.
    """

    name: str
    kind: Kind
    names: ColumnNames
    needs: tuple[str, ...] = ()
    """The columns that tell it; empty: those of ``names``."""
    fits: Callable[[Row], bool] | None = None
    """What else tells it, of a row that has these columns."""

    @property
    def required(self) -> tuple[str, ...]:
        """The columns that every row must have."""
        names = self.names
        asked = (names.prompt, names.response, names.messages)
        told = (*asked, names.chosen, names.rejected, names.label)
        return self.needs or tuple(each for each in told if each)

    def matches(self, row: Row) -> bool:
        """Tell whether a row is of this format."""
        if not all(row.get(each) is not None for each in self.required):
            return False
        return self.fits is None or self.fits(row)


def _turns(name: str, column: str, fits: Callable[[Row], bool] | None = None) -> Shape:
    return Shape(
        name, "turns", ColumnNames(messages=column, system="system", tools="tools"), (), fits
    )


def _pairs(name: str, prompt: str, response: str, query: str | None = None) -> Shape:
    names = ColumnNames(prompt, query, response, history="history", system="system", tools="tools")
    return Shape(name, "pairs", names)


def _preference(name: str, names: ColumnNames, fits: Callable[[Row], bool] | None = None) -> Shape:
    beside = replace(names, system="system", tools="tools", history="history")
    return Shape(name, "preference", beside, (), fits)


def _comparing(
    chosen: str, rejected: str, names: ColumnNames, fits: Callable[[Row], bool] | None = None
) -> Shape:
    whole = replace(names, chosen=chosen, rejected=rejected)
    return _preference("chosen and rejected answers", whole, fits)


def _verdict(label: str, names: ColumnNames, fits: Callable[[Row], bool] | None = None) -> Shape:
    whole = replace(names, label=label, system="system", tools="tools", history="history")
    return Shape("answers with a verdict (KTO)", "verdict", whole, (), fits)


def _says(key: str, column: str) -> Callable[[Row], bool]:
    """Return what tells whether the messages of a column have a key."""

    def fits(row: Row) -> bool:
        items = row[column]
        return (
            isinstance(items, list)
            and bool(items)
            and isinstance(items[0], dict)
            and key in items[0]
        )

    return fits


def _judged(row: Row) -> bool:
    return is_verdict(row["label"])


def _ranked(row: Row) -> bool:
    return isinstance(row["output"], list)


def _whole(row: Row) -> bool:
    """Tell whether the answers to compare are whole conversations, questions and all."""
    value = row["chosen"]
    first = value[0] if isinstance(value, list) and value else None
    speaker = first.get("role", first.get("from")) if isinstance(first, dict) else None
    return speaker in ("system", "user", "human")


_PROMPTS = (
    ColumnNames(messages="conversations"),
    ColumnNames(messages="messages"),
    ColumnNames(prompt="prompt"),
    ColumnNames(prompt="instruction", query="input"),
    ColumnNames(prompt="question"),
    ColumnNames(prompt="query"),
    ColumnNames(),
)
"""Where the question stands that two answers are compared of, in this order; at last: with them."""

_ANSWERS = (
    ColumnNames(messages="messages"),
    ColumnNames(messages="conversations"),
    ColumnNames(prompt="prompt", response="completion"),
    ColumnNames(prompt="instruction", query="input", response="output"),
    ColumnNames(prompt="prompt", response="response"),
    ColumnNames(prompt="query", response="response"),
    ColumnNames(prompt="question", response="answer"),
)
"""Where the answer stands that a verdict is of, and its question, in this order."""

SHAPES = (
    _comparing("chosen", "rejected", ColumnNames(), _whole),
    *(_comparing("chosen", "rejected", each) for each in _PROMPTS),
    _comparing("messages", "rejected_response", ColumnNames(messages="messages")),
    _comparing("messages", "rejected_messages", ColumnNames(messages="messages")),
    _comparing("response", "rejected_response", ColumnNames(prompt="query")),
    _comparing("response", "rejected_response", ColumnNames(prompt="prompt")),
    *(_verdict("kto_tag", each) for each in _ANSWERS),
    *(_verdict("label", each, _judged) for each in _ANSWERS[:3]),
    _preference(
        "ranked answers",
        ColumnNames(prompt="instruction", query="input", chosen="output"),
        _ranked,
    ),
    _turns("messages", "messages"),
    _turns("sharegpt", "conversations", _says("from", "conversations")),
    _turns("chatglm3", "conversations", _says("role", "conversations")),
    _turns("sharegpt", "conversations"),
    _turns("conversation", "conversation"),
    _pairs("alpaca", "instruction", "output", "input"),
    _pairs("adgen", "content", "summary"),
    _pairs("prompt/response", "prompt", "response"),
    _pairs("prompt/completion", "prompt", "completion"),
    _pairs("query/response", "query", "response"),
    _pairs("instruction/response", "instruction", "response", "context"),
    _pairs("question/answer", "question", "answer"),
    _pairs("input/output", "input", "output"),
    _pairs("input/target", "input", "target"),
    Shape("plain text", "text", ColumnNames(prompt="text")),
)

ACCEPTED = (
    "instruction and output (alpaca), conversations (sharegpt), messages, prompt and response, "
    "content and summary (ADGEN), question and answer"
)


def shape_of(row: Row) -> Shape | None:
    """Return the format of a row; None where it is of none that is known."""
    return next((each for each in SHAPES if each.matches(row)), None)


_COUNTED = tuple(_verdict("label", each) for each in _ANSWERS[:3])
"""What 1 and 0 as verdicts may be of; elsewhere a number may be anything."""


def shape_among(rows: Sequence[Row], *, judged: bool = False) -> Shape | None:
    """Return the format that some rows of a file tell; None where they are of none that is known.

    The first row that is of one tells it. A verdict in a later one says that the answers are not
    simply to be learnt.

    :param judged: answers with a verdict are wanted: what is 1 or 0 is one wherever it may be.
    """
    found = [each for each in map(shape_of, rows) if each is not None]
    if not found or found[0].kind not in ("pairs", "turns"):
        return found[0] if found else None
    stated = next((each for each in found if each.kind == "verdict"), None)
    return stated or _counted(rows, judged) or found[0]


def _counted(rows: Sequence[Row], judged: bool) -> Shape | None:
    """Return the format of answers with 1 or 0 as verdicts, if that is what rows are."""

    def told(shape: Shape, row: Row) -> bool:
        return shape.matches(row) and said(row["label"]) is not None

    if judged:
        return next((each for each in _COUNTED if any(told(each, row) for row in rows)), None)
    trl = _COUNTED[-1]
    return trl if all(told(trl, row) for row in rows) else None


def _named_kind(names: ColumnNames, found: Shape | None) -> Kind:
    """Return what somebody means who names these columns of a file in a format."""
    if names.label:
        return "verdict"
    if names.chosen or names.rejected:
        return "preference"
    if found is not None and found.kind in ("preference", "verdict") and not names.response:
        return found.kind
    return "turns" if names.messages else "pairs"


def custom(names: ColumnNames, found: Shape | None) -> Shape:
    """Return a format with columns that somebody named, the others as they were found."""
    kind = _named_kind(names, found)
    alike = ("verdict", "pairs", "turns") if kind == "verdict" else (kind,)
    base = found.names if found is not None and found.kind in alike else ColumnNames()
    if names.prompt and names.prompt != base.prompt:
        base = replace(base, query=None)  # which belongs to the prompt that was found
    if kind in ("preference", "verdict") and names.prompt:
        base = replace(base, messages=None)
    if kind in ("preference", "verdict") and names.messages:
        base = replace(base, prompt=None, query=None)
    if kind == "verdict" and names.messages:
        base = replace(base, response=None)
    tags = names.tags if names.tags != Tags() else base.tags
    whole = replace(base, **names.named, tags=tags)
    if found is not None and whole == found.names:
        return found
    return Shape("columns " + ", ".join(names.named.values()), kind, whole)
