"""Calls that models ask for, as data.

Light floor: no torch.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from .errors import UsageError


@dataclass(frozen=True)
class ToolCall:
    """A call that a model asks for; nothing is run by asking."""

    name: str
    arguments: Mapping[str, Any] = field(default_factory=dict)
    """By parameter name, as parsed; ``{"code": ...}`` for a code interpreter."""

    @classmethod
    def of(cls, value: ToolCall | Mapping[str, Any]) -> ToolCall:
        """Return ``value`` as a call.

        :param value: a call, or a mapping with ``name`` and ``arguments``, bare or in OpenAI's form
            (``{"type": "function", "function": {...}}``); arguments are a mapping or its JSON.
        :raises UsageError: if it is neither.
        """
        if isinstance(value, ToolCall):
            return value
        inner = value.get("function", value) if isinstance(value, Mapping) else None
        name = inner.get("name") if isinstance(inner, Mapping) else None
        if not isinstance(inner, Mapping) or not isinstance(name, str):
            raise UsageError(f"a tool call is {{'name': ..., 'arguments': ...}}, got {value!r}")
        return cls(name, _arguments(inner.get("arguments", {})))


def _arguments(value: object) -> Mapping[str, Any]:
    if isinstance(value, str):
        try:
            value = json.loads(value or "{}")
        except (ValueError, RecursionError) as error:
            raise UsageError(f"the arguments of a tool call are no JSON: {error}") from error
    if not isinstance(value, Mapping):
        raise UsageError(f"the arguments of a tool call must be an object, got {value!r}")
    return value
