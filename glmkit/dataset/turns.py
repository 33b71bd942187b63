"""Conversations as files write them: lists of messages, whatever these call their parts."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from typing import Any, NamedTuple

from ..errors import DataError, UsageError
from ..tables.files import parsed_json
from ..types import Message, Role, ToolCall
from .columns import Tags

_ALIASES = {
    "system": ("system",),
    "user": ("user", "human"),
    "assistant": ("assistant", "gpt", "bot", "chatgpt", "model"),
    "function": ("function_call", "tool_call"),
    "observation": ("observation", "tool", "function", "tool_response", "function_response"),
}
_ROLES = {alias: role for role, aliases in _ALIASES.items() for alias in aliases}
_ROLE_KEYS, _CONTENT_KEYS = ("role", "from"), ("content", "value")
_WEIGHT_KEYS = ("weight", "loss", "train")
_MEDIA = ("image", "images", "image_url", "video", "videos", "audio", "audios", "input_audio")


class Turn(NamedTuple):
    """A message, and how much it counts where the file says so."""

    message: Message
    weight: float | None = None


def turns_of(
    items: object, tags: Tags, *, system: object = None, tools: object = None
) -> list[Turn]:
    """Return a conversation.

    :param items: a list of messages, or its JSON.
    :param system: the system message, where the row has it beside them.
    :param tools: what the row offers beside them: JSON schemas, or their JSON.
    :raises DataError: if it is none.
    """
    if isinstance(items, str):
        items = _json(items, "messages")
    if not isinstance(items, Sequence) or isinstance(items, str) or not items:
        raise DataError(f"the conversation must be a list of messages, got {items!r:.60}")
    roles = _roles(tags)
    turns: list[Turn] = []
    for number, item in enumerate(items, 1):
        if not isinstance(item, Mapping):
            raise DataError(f"message {number} must be an object, got {item!r:.60}")
        try:
            for turn in _turns(item, roles, tags):
                _add(turns, turn)
        except DataError as error:
            raise DataError(f"message {number}: {error}") from error
    told = text_of(system, "the system message")
    if told and turns[0].message.role != "system":
        turns.insert(0, Turn(Message("system", told)))
    return offering(_with_calls(turns), tools)


def offering(turns: list[Turn], tools: object) -> list[Turn]:
    """Put the tools that a row offers on its system message.

    :raises DataError: if they are no JSON schemas.
    """
    offered = tools_of(tools)
    if not offered:
        return turns
    first = turns[0].message
    if first.role == "system":
        return [Turn(replace(first, tools=offered)), *turns[1:]]
    return [Turn(Message("system", "", tools=offered)), *turns]


def tools_of(value: object) -> tuple[Mapping[str, Any], ...]:
    """Return tools from a list of JSON schemas, or its JSON.

    :raises DataError: if they are none.
    """
    if isinstance(value, str):
        value = _json(value, "tools") if value.strip() else None
    found = [value] if isinstance(value, Mapping) else value or []
    if not isinstance(found, list) or not all(isinstance(each, Mapping) for each in found):
        raise DataError(f"tools must be a list of JSON schemas, got {value!r:.60}")
    return tuple(found)


def text_of(value: object, what: str) -> str:
    """Return a text, or a number as one; None is the empty text.

    :raises DataError: if the value is something else.
    """
    if value is None:
        return ""
    if isinstance(value, str):
        return value
    if isinstance(value, (int, float)) and not isinstance(value, bool):
        return str(value)
    raise DataError(f"{what} must be text, got {value!r:.60}")


def _json(text: str, what: str) -> Any:  # noqa: ANN401
    try:
        return parsed_json(text)
    except ValueError as error:
        raise DataError(f"{what} must be JSON, got {text!r:.60} ({error})") from error


def _roles(tags: Tags) -> dict[str, str]:
    own = {getattr(tags, role): role for role in _ALIASES}
    return _ROLES | {name.lower(): role for name, role in own.items() if name}


def _turns(item: Mapping[str, Any], roles: Mapping[str, str], tags: Tags) -> Iterator[Turn]:
    """Yield what one message of a file says: one message mostly."""
    role, content = _role(item, roles, tags), _content(item, tags)
    weight = _weight(item)
    media = next((key for key in _MEDIA if item.get(key)), None)
    if media is not None:
        raise DataError(f"it has {media}, and only text can be learnt here")
    if role == "function":
        yield Turn(Message("assistant", "", tool_calls=calls_of(content)), weight)
    elif role == "observation" and "parameters" in item:  # as ChatGLM3's own examples write calls
        call = _call({"name": item.get("name"), "arguments": item["parameters"]})
        yield Turn(Message("assistant", "", tool_calls=(call,)), weight)
        yield Turn(Message("observation", _observed(item.get("observation"))))
    elif role == "assistant":
        yield Turn(_answer(item, content), weight)
    else:
        named: Role = "observation" if role == "observation" else _plain(role)
        yield Turn(Message(named, _said(content), tools=tools_of(item.get("tools"))), weight)


def _plain(role: str) -> Role:
    return "system" if role == "system" else "user"


def _role(item: Mapping[str, Any], roles: Mapping[str, str], tags: Tags) -> str:
    keys = (tags.role,) if tags.role else _ROLE_KEYS
    said = next((item[key] for key in keys if item.get(key) is not None), None)
    if said is None:
        raise DataError(f"nobody says it: it has no {' or '.join(keys)}, but {_named(item)}")
    role = roles.get(str(said).lower())
    if role is None:
        raise DataError(f"unknown role {said!r}; known: {', '.join(roles)}")
    return role


def _content(item: Mapping[str, Any], tags: Tags) -> object:
    keys = (tags.content,) if tags.content else _CONTENT_KEYS
    for key in keys:
        if key in item:
            return item[key]
    if item.get("tool_calls") or "parameters" in item:
        return None
    raise DataError(f"nothing is said: it has no {' or '.join(keys)}, but {_named(item)}")


def _named(item: Mapping[str, Any]) -> str:
    return ", ".join(map(repr, item)) or "nothing"


def _weight(item: Mapping[str, Any]) -> float | None:
    for key in _WEIGHT_KEYS:
        value = item.get(key)
        if value is not None:
            if not isinstance(value, (bool, int, float)) or not 0 <= value < float("inf"):
                raise DataError(f"{key} must be true, false or a number from 0, got {value!r:.40}")
            return float(value)
    return None


def _answer(item: Mapping[str, Any], content: object) -> Message:
    calls = tuple(map(_call, item.get("tool_calls") or ()))
    if isinstance(content, list):
        written = [each for each in map(_part, content) if each]
        said = "".join(each for each in written if isinstance(each, str))
        calls += tuple(each for each in written if isinstance(each, ToolCall))
    else:
        said = text_of(content, "content")
    thought = text_of(item.get("reasoning_content"), "reasoning_content")
    return Message("assistant", _thinking(thought) + said, tool_calls=calls)


def _thinking(thought: str) -> str:
    return f"<think>\n{thought.strip()}\n</think>\n\n" if thought.strip() else ""


def _said(content: object) -> str:
    if not isinstance(content, list):
        return text_of(content, "content")
    return "".join(str(each) for each in map(_part, content))


def _part(part: object) -> str | ToolCall:
    """Return what one piece of a content in pieces says."""
    if isinstance(part, str):
        return part
    kind = part.get("type") if isinstance(part, Mapping) else None
    if not isinstance(part, Mapping) or kind not in ("text", "reasoning", "tool_call"):
        raise DataError(f"content has a piece of type {kind!r}, and only text can be learnt here")
    value = part.get("value", part.get(str(kind)))
    if kind == "tool_call":
        return _call(_json(value, "a tool call") if isinstance(value, str) else value)
    return (
        _thinking(text_of(value, "a piece")) if kind == "reasoning" else text_of(value, "a piece")
    )


def calls_of(content: object) -> tuple[ToolCall, ...]:
    """Return the calls that a message is: one or several, as JSON.

    :raises DataError: if it is none.
    """
    found = _json(content, "a call of a tool") if isinstance(content, str) else content
    if not found or not isinstance(found, (list, Mapping)):
        raise DataError(
            f"a call of a tool must be JSON with a name and arguments, got {found!r:.60}"
        )
    return tuple(map(_call, found if isinstance(found, list) else [found]))


def _call(value: Any) -> ToolCall:  # noqa: ANN401
    try:
        return ToolCall.of(value)
    except UsageError as error:
        raise DataError(str(error)) from error


def _observed(value: object) -> str:
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def _add(turns: list[Turn], turn: Turn) -> None:
    """Put a message behind the others; a call of a tool is part of the answer that it follows."""
    last = turns[-1] if turns else None
    if last is None or not turn.message.tool_calls or last.message.role != "assistant":
        turns.append(turn)
        return
    said = "\n".join(each.message.content for each in (last, turn) if each.message.content)
    calls = last.message.tool_calls + turn.message.tool_calls
    joined = replace(last.message, content=said, tool_calls=calls)
    turns[-1] = Turn(joined, last.weight if turn.weight is None else turn.weight)


def _with_calls(turns: list[Turn]) -> list[Turn]:
    """Read the answers that are JSON of a call, as GLM-4's own examples write them."""
    for at, turn in enumerate(turns[:-1]):
        message = turn.message
        if turns[at + 1].message.role == "observation" and message.content.startswith("{"):
            with suppress(DataError):
                calls = calls_of(message.content)
                if not message.tool_calls:
                    turns[at] = Turn(replace(message, content="", tool_calls=calls), turn.weight)
    return turns
