"""What an answer must look like: JSON that fits a schema, a regular expression, a choice.

Light floor: importable in milliseconds, no torch, no third-party package.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

from .errors import UsageError
from .texts import is_unicode, texts_in

ToolChoice = Literal["auto", "required"]
TOOL_CHOICES: tuple[ToolChoice, ...] = ("auto", "required")
_LONGEST = 1 << 18
"""Characters of a schema, an expression, or all choices."""


@dataclass(frozen=True)
class ResponseFormat:
    """What an answer must look like, said in one of these ways.

    Tokens that do not fit are never picked, so an answer that ends fits; one that is cut off at
    ``max_tokens`` may be incomplete.

    :raises UsageError: if none is said, or several, or what is said is no such thing.
    """

    json_schema: Mapping[str, Any] | None = None
    """JSON that fits this schema."""
    regex: str | None = None
    r"""A text that this expression describes as a whole, in Rust's syntax: no look-around; ``\d``
    is 0 to 9."""
    choice: tuple[str, ...] = ()
    """One of these texts."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "choice", _choices(self.choice))
        said = [self.json_schema is not None, self.regex is not None, bool(self.choice)]
        if sum(said) != 1:
            raise UsageError(
                "a response format is one of json_schema, regex and choice; got "
                f"{'several' if any(said) else 'none'}"
            )
        if self.json_schema is not None:
            _check_schema(self.json_schema)
        elif not all(map(_is_text, (self.regex or "", *self.choice))):
            raise UsageError("a response format's regex and choices must be texts")
        if len(self.regex or "") + sum(map(len, self.choice)) > _LONGEST:
            raise UsageError(f"a response format may have {_LONGEST} characters; make it shorter")

    @classmethod
    def of(cls, value: object) -> ResponseFormat | None:
        """Return ``value`` as a response format; None where any text will do.

        :param value: None, a format, a mapping of its fields, or OpenAI's, with the type ``text``,
            ``json_object`` or ``json_schema``.
        :raises UsageError: if it is none of these.
        """
        if value is None or isinstance(value, ResponseFormat):
            return value
        if not isinstance(value, Mapping):
            raise UsageError(f"a response format is a mapping, got {value!r:.80}")
        if "type" in value:
            return _openai(value)
        if not value or not set(value) <= {"json_schema", "regex", "choice"}:
            raise UsageError(
                f"a response format has json_schema, regex or choice, got {list(value)!r:.80}"
            )
        return cls(**value)

    @property
    def any_object(self) -> bool:
        """Whether any JSON object will do."""
        return self.json_schema == ANY_OBJECT


ANY_OBJECT: Mapping[str, Any] = {"type": "object"}
"""The schema that every JSON object fits."""


def _openai(value: Mapping[Any, Any]) -> ResponseFormat | None:
    kind = value["type"]
    if kind == "text":
        return None
    if kind == "json_object":  # some servers take a schema here
        return ResponseFormat(json_schema=value.get("schema") or ANY_OBJECT)
    if kind == "json_schema":
        named = value.get("json_schema")
        if not isinstance(named, Mapping):
            raise UsageError('a response format of type json_schema needs "json_schema", an object')
        return ResponseFormat(json_schema=named.get("schema", ANY_OBJECT))
    raise UsageError(
        f"a response format's type is text, json_object or json_schema, got {kind!r:.80}"
    )


def _choices(value: object) -> tuple[Any, ...]:
    if isinstance(value, str) or not isinstance(value, Iterable):
        raise UsageError(f"choice must be texts to choose from, got {value!r:.80}")
    return tuple(value)


def _is_text(value: object) -> bool:
    return isinstance(value, str) and is_unicode(value)


def _check_schema(schema: object) -> None:
    if not isinstance(schema, Mapping):
        raise UsageError(f"a JSON schema must be an object, got {schema!r:.80}")
    try:
        length = len(json.dumps(schema, allow_nan=False))
        good = all(map(is_unicode, texts_in(schema)))
    except (TypeError, ValueError, RecursionError) as error:
        raise UsageError(f"a JSON schema must be JSON: {error}") from error
    if not good:
        raise UsageError("a text in the JSON schema is no valid Unicode")
    if length > _LONGEST:
        raise UsageError(f"a JSON schema may have {_LONGEST} characters, this one has {length}")
