"""Reading the rows of a batch job, one at a time, each a conversation.

A row becomes a conversation by its shape:

    messages                     the conversation itself
    custom_id + body.messages    a request of OpenAI's batch API
    instruction (+ input, system, history)   alpaca
    prompt                       one user message

With a template any columns will do: ``"Translate: {text}"``. A row that cannot be read stays a
row: it carries its error, and the job goes on.
"""

from __future__ import annotations

import string
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ..errors import GlmkitError, UsageError
from ..tables.files import Columns, parsed_json, read_columns
from ..types import Message


@dataclass(frozen=True)
class BatchRow:
    """One row of a job."""

    index: int
    """Its place in the file, from 0."""
    columns: Columns
    """As read; they are kept beside the answer."""
    messages: tuple[Message, ...] = ()
    options: Mapping[str, Any] = field(default_factory=dict)
    """What the row itself asks of generation, by the names of GenerationOptions."""
    error: str | None = None
    """Why the row cannot be asked."""


@dataclass(frozen=True)
class Reading:
    """How rows become conversations.

    :raises UsageError: if the template is none.
    """

    system: str | None = None
    """Said first in every conversation that has no system message of its own."""
    template: str | None = None
    """A user message with column names in braces."""
    adapter_column: str | None = None
    """The column that names the adapter to answer a row with; empty: the base."""

    def __post_init__(self) -> None:
        if self.system:
            Message("system", self.system)  # refuses what no message can hold, before any row
        if self.template is not None and not template_columns(self.template):
            raise UsageError(
                f"the prompt template {self.template!r} names no column; "
                "write column names in braces, for example 'Translate: {text}'"
            )


def template_columns(template: str) -> list[str]:
    """Return the columns that a template names.

    :raises UsageError: if it is not one.
    """
    try:
        parts = list(string.Formatter().parse(template))
    except ValueError as error:
        raise UsageError(
            f"the prompt template {template!r} is damaged ({error}); write {{{{ for a brace"
        ) from error
    for _, name, spec, conversion in parts:
        if name is not None and (not name or spec or conversion or not _plain(name)):
            raise UsageError(
                f"the prompt template {template!r} has {{{name}}}; only plain column names go "
                "in braces"
            )
    return [name for _, name, _, _ in parts if name]


def refuse_columns(columns: list[str], reading: Reading) -> None:
    """Refuse a file none of whose rows can be asked, as its header shows.

    :raises UsageError: if it lacks what all of them need.
    """
    wanted = template_columns(reading.template) if reading.template is not None else []
    lacking = next((each for each in wanted if each not in columns), None)
    if lacking is not None:
        raise UsageError(
            f"no row has the column {lacking!r} of the prompt template; the file has "
            f"{_named(columns)}"
        )
    if not wanted and not any(each in columns for each in _SHAPES):
        raise UsageError(
            f"the file has none of the columns {', '.join(_SHAPES)}; it has {_named(columns)}: "
            "give --prompt-template"
        )
    if reading.adapter_column is not None and reading.adapter_column not in columns:
        raise UsageError(
            f"no row has the column {reading.adapter_column!r}, which names its adapter; the file "
            f"has {_named(columns)}"
        )


def _plain(name: str) -> bool:
    return not any(each in name for each in ".[]")


def read_rows(path: Path, reading: Reading) -> Iterator[BatchRow]:
    """Yield the rows of a file, in order.

    :raises DataError: if the file itself cannot be read.
    """
    for index, found in enumerate(read_columns(path)):
        if found.error is None:
            yield _row(index, found.columns, reading)
        else:
            yield BatchRow(index, {}, error=f"{found.place} {found.error}")


def _row(index: int, columns: Columns, reading: Reading) -> BatchRow:
    try:
        messages, options = _conversation(columns, reading)
        options = {**options, **_adapter(columns, reading.adapter_column)}
    except _BAD_ROW as error:
        return BatchRow(index, columns, error=str(error) or type(error).__name__)
    if reading.system and messages[0].role != "system":
        messages.insert(0, Message("system", reading.system))
    return BatchRow(index, columns, tuple(messages), options)


_BAD_ROW = (GlmkitError, KeyError, TypeError, ValueError)


def _adapter(columns: Columns, column: str | None) -> dict[str, Any]:
    if column is None:
        return {}
    if column not in columns:
        raise UsageError(
            f"the row lacks the column {column!r}, which names its adapter (empty: none); it has "
            f"{_named(columns)}"
        )
    chosen = columns[column]
    return {"adapter": {} if chosen in (None, "") else str(chosen)}


def _named(columns: Iterable[str]) -> str:
    return ", ".join(map(repr, columns)) or "none"


Conversation = tuple[list[Message], dict[str, Any]]


def _conversation(columns: Columns, reading: Reading) -> Conversation:
    if reading.template is not None:
        return [Message("user", _filled(reading.template, columns))], {}
    for key, read in _SHAPES.items():
        if columns.get(key) not in (None, ""):
            return read(columns)
    empty = [key for key in _SHAPES if key in columns]
    if empty:
        raise UsageError(f"the row's {' and '.join(empty)} is empty; write what to ask there")
    raise UsageError(
        f"the row has none of the columns {', '.join(_SHAPES)}; it has "
        f"{_named(columns)}: give --prompt-template"
    )


def _filled(template: str, columns: Columns) -> str:
    missing = [name for name in template_columns(template) if name not in columns]
    if missing:
        raise UsageError(f"the row lacks the column {missing[0]!r} of the prompt template")
    return template.format_map({name: "" if v is None else v for name, v in columns.items()})


def _from_messages(columns: Columns) -> Conversation:
    return _messages(columns["messages"]), {}


def _messages(value: object) -> list[Message]:
    value = _messages_in(value) if isinstance(value, str) else value
    if not isinstance(value, list) or not value:
        raise UsageError(f"messages must be a list with one message at least, got {value!r:.80}")
    for each in value:
        if isinstance(each, dict) and "passages" in each:
            raise UsageError("a message of a job brings no passages; write them in its content")
    return [Message.of(each) for each in value]


def _messages_in(text: str) -> Any:  # noqa: ANN401
    """Return what a cell says that holds messages as JSON."""
    try:
        return parsed_json(text)
    except ValueError as error:
        raise UsageError(
            f"messages is the text {text!r:.40}, which is no JSON list of messages ({error}); "
            'write [{"role": "user", "content": ...}], or name the column prompt'
        ) from error


_OPENAI_OPTIONS = {
    "max_tokens": "max_tokens",
    "max_completion_tokens": "max_tokens",
    "temperature": "temperature",
    "top_p": "top_p",
    "seed": "seed",
    "stop": "stop",
    "response_format": "response_format",
}


def _from_openai(columns: Columns) -> Conversation:
    body = columns["body"]
    if not isinstance(body, dict):
        raise UsageError(f"body must be an object, got {type(body).__name__}")
    if body.get("n", 1) != 1 or body.get("stream"):
        raise UsageError("a batch request answers once, unstreamed: leave out n and stream")
    options = {
        ours: body[theirs]
        for theirs, ours in _OPENAI_OPTIONS.items()
        if body.get(theirs) is not None
    }
    return _messages(body.get("messages")), options


def _from_alpaca(columns: Columns) -> Conversation:
    messages = [Message("system", columns["system"])] if columns.get("system") else []
    for question, answer in columns.get("history") or ():
        messages += [Message("user", question), Message("assistant", answer)]
    both = [str(columns[each]) for each in ("instruction", "input") if columns.get(each)]
    return [*messages, Message("user", "\n".join(both))], {}


def _from_prompt(columns: Columns) -> Conversation:
    prompt = columns["prompt"]
    return (_messages(prompt) if isinstance(prompt, list) else [Message("user", str(prompt))]), {}


_SHAPES: dict[str, Callable[[Columns], Conversation]] = {
    "messages": _from_messages,
    "body": _from_openai,
    "instruction": _from_alpaca,
    "prompt": _from_prompt,
}
