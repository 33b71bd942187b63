"""Tools in prompts and in answers: offers, and calls as Python literals or JSON.

What a model wrote is never run: a call is parsed as a syntax tree, and its arguments must be
literals. What does not parse is not a call.
"""

from __future__ import annotations

import ast
import json
import math
import re
from collections.abc import Mapping, Sequence
from itertools import chain
from typing import Any

from ...errors import UsageError
from ...texts import is_unicode, texts_in
from ...types import Message, ToolCall

Tool = Mapping[str, Any]

LONGEST_CALL = 1 << 16
"""Characters: longer ones are not parsed."""
LONGEST_TOOLS = 1 << 18
"""Characters of the tools that are on offer, written out."""
DEEPEST_TOOL = 32
"""Levels of a tool's schema."""
_WRITER = json.JSONEncoder(indent=4, ensure_ascii=False, default=dict)
_FENCED = re.compile(r"\s*```(?:python)?[ \t]*\n(.*?)\n?```\s*\Z", re.DOTALL)


def function_of(tool: Tool) -> Tool:
    """Return a tool's function: OpenAI's form wraps it, ChatGLM3's does not."""
    inner = tool.get("function")
    return inner if isinstance(inner, Mapping) else tool


def wrapped(tool: Tool) -> Tool:
    """Return a tool in OpenAI's form, which GLM-4 expects."""
    return tool if "type" in tool and "name" not in tool else {"type": "function", "function": tool}


def offered(messages: Sequence[Message]) -> tuple[Tool, ...]:
    """Return the tools that a conversation offers."""
    return tuple(tool for message in messages for tool in message.tools)


def names_of(tools: Sequence[Tool]) -> frozenset[str]:
    """Return what the tools are called; a built-in one by its type."""
    found = (function_of(each).get("name", each.get("type")) for each in tools)
    return frozenset(each for each in found if isinstance(each, str))


def listed(tools: Sequence[Tool]) -> str:
    """Return tools as ChatGLM3's system message lists them."""
    functions = [function_of(each) for each in tools]
    return written(functions)


def written(schema: object) -> str:
    """Return what tools are as JSON, indented as models were taught.

    :raises UsageError: if it is nested too deep or too long: indented, a few kilobytes of nested
        brackets are gigabytes of blanks.
    """
    refuse_deep(schema)
    pieces: list[str] = []
    length = 0
    for piece in _WRITER.iterencode(schema):
        pieces.append(piece)
        length += len(piece)
        if length > LONGEST_TOOLS:
            raise UsageError(
                f"the tools on offer take more than {LONGEST_TOOLS} characters; offer fewer"
            )
    return "".join(pieces)


def refuse_deep(value: object) -> None:
    """Refuse what is nested too deep for a tool's schema.

    :raises UsageError: if it has more than 32 levels.
    """
    level = [value]
    for _ in range(DEEPEST_TOOL):
        inner = [
            each.values() if isinstance(each, Mapping) else each
            for each in level
            if isinstance(each, (Mapping, list, tuple))
        ]
        level = list(chain.from_iterable(inner))
        if not level:
            return
    raise UsageError(f"a tool's schema is nested deeper than {DEEPEST_TOOL}; make it plainer")


def unfenced(text: str) -> str | None:
    """Return the code between ``` marks, None where text is not such a block."""
    found = _FENCED.match(text)
    return found[1] if found else None


def python_call(text: str) -> Mapping[str, Any] | None:
    """Return the arguments of ``tool_call(name=literal, ...)``, None where text is none."""
    if len(text) > LONGEST_CALL:
        return None
    try:
        node = ast.parse(text.strip(), mode="eval").body
        if not isinstance(node, ast.Call) or not _names_the_tool(node):
            return None
        found = {str(each.arg): ast.literal_eval(each.value) for each in node.keywords}
    except (SyntaxError, ValueError, TypeError, RecursionError, MemoryError):
        return None
    return found if _is_data(found) and all(map(is_unicode, texts_in(found))) else None


def _names_the_tool(call: ast.Call) -> bool:
    named = isinstance(call.func, ast.Name) and call.func.id == "tool_call"
    return named and not call.args and all(each.arg is not None for each in call.keywords)


def json_object(text: str) -> Mapping[str, Any] | None:
    """Return the object that a text of JSON is, None where it is none."""
    if len(text) > LONGEST_CALL:
        return None
    try:
        found = json.loads(text, parse_constant=_refuse_constant, parse_float=_finite)
    except (ValueError, RecursionError):
        return None
    return found if isinstance(found, dict) and all(map(is_unicode, texts_in(found))) else None


def _refuse_constant(name: str) -> None:
    raise ValueError(f"{name} is no JSON")


def _finite(written: str) -> float:
    """Return a number; one that is too large for a float would be no JSON when it goes out."""
    number = float(written)
    if not math.isfinite(number):
        raise ValueError(f"{written:.40} is too large")
    return number


def _is_data(value: object) -> bool:
    """Tell whether a literal could be JSON as well."""
    if isinstance(value, dict):
        return all(isinstance(key, str) and _is_data(each) for key, each in value.items())
    if isinstance(value, (list, tuple)):
        return all(_is_data(each) for each in value)
    if isinstance(value, float):
        return math.isfinite(value)
    return value is None or isinstance(value, (str, int))


def as_python(call: ToolCall) -> str:
    """Return a call as ChatGLM3 writes it."""
    if set(call.arguments) == {"code"}:
        return f"```python\n{call.arguments['code']}\n```"
    arguments = ", ".join(f"{name}={value!r}" for name, value in call.arguments.items())
    return f"```python\ntool_call({arguments})\n```"
