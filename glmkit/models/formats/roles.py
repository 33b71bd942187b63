"""The formats of ChatGLM3-6B and GLM-4: a role token, a line of metadata, content."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from typing import NamedTuple

from ...types import Message
from .base import ChatFormat, Piece, Special
from .forced import json_calls, python_calls
from .glm4_tools import INTRODUCTION, INTRODUCTION_0414, told
from .replies import INTERPRETER, JSON, PYTHON, TurnReader
from .tools import as_python, listed

_ASSISTANT = Special("<|assistant|>")
_TOOLS_ASKED = (
    "Answer the following questions as best as you can. You have access to the following tools:"
)
"""The published wording, for a system message that offers tools and says nothing."""


class Entry(NamedTuple):
    """One message in the form of the original code."""

    role: str
    metadata: str
    content: str


def _role(message: Message) -> str:
    return "observation" if message.role == "tool" else message.role


def _with_default(messages: Sequence[Message], system: str) -> list[Message]:
    """Put the default system text first where the conversation brings none."""
    first = [Message("system", system)] if system and messages[0].role != "system" else []
    return [*first, *messages]


def third_entries(messages: Sequence[Message]) -> list[Entry]:
    """Return messages as ChatGLM3's entries; each tool call is one of its own."""
    entries: list[Entry] = []
    for message in messages:
        content = message.content
        if message.tools:
            content = f"{content or _TOOLS_ASKED}\n{listed(message.tools)}"
        if content or not message.tool_calls:
            entries.append(Entry(_role(message), "", content))
        entries += [Entry("assistant", call.name, as_python(call)) for call in message.tool_calls]
    return entries


def third_pieces(entries: Sequence[Entry]) -> list[Piece]:
    """Write entries as ChatGLM3 reads them; ends where the answer begins."""
    pieces: list[Piece] = [Special("[gMASK]"), Special("sop")]
    for role, metadata, content in entries:
        pieces += [Special(f"<|{role}|>"), f"{metadata}\n", content]
    return [*pieces, _ASSISTANT]


def fourth_entries(messages: Sequence[Message], introduction: str = INTRODUCTION) -> list[Entry]:
    """Return messages as GLM-4's entries; tools are told of before what their message says."""
    entries: list[Entry] = []
    for message in messages:
        if message.tools:
            entries.append(Entry("system", "", told(message.tools, introduction)))
        entries.append(Entry(_role(message), "", message.content))
        for call in message.tool_calls:
            plain = set(call.arguments) == {"code"} and call.name == INTERPRETER
            content = as_python(call) if plain else _arguments(call.name, dict(call.arguments))
            entries.append(Entry("assistant", call.name, content))
    return entries


def _arguments(name: str, arguments: dict[str, object]) -> str:
    """Return what is said to a tool: JSON, or the bare text of a built-in tool."""
    bare = {"python": "code", "simple_browser": "code", "cogview": "prompt"}.get(name)
    if bare is not None and set(arguments) == {bare}:
        return str(arguments[bare])
    return json.dumps(arguments, ensure_ascii=False, default=str)


def fourth_pieces(entries: Sequence[Entry]) -> list[Piece]:
    """Write entries as GLM-4 reads them, empty ones left out; ends where the answer begins."""
    pieces: list[Piece] = [Special("[gMASK]"), Special("<sop>")]
    for role, metadata, content in entries:
        if content:
            pieces += [Special(f"<|{role}|>"), f"{metadata}\n{content}"]
    return [*pieces, _ASSISTANT]


def _third(messages: Sequence[Message], system: str) -> list[Piece]:
    return third_pieces(third_entries(_with_default(messages, system)))


def _fourth(messages: Sequence[Message], system: str) -> list[Piece]:
    return fourth_pieces(fourth_entries(_with_default(messages, system)))


def _fourth_0414(messages: Sequence[Message], system: str) -> list[Piece]:
    """Write GLM-4-0414's format: the tools come first, then system messages, then the rest."""
    entries = fourth_entries(_with_default(messages, system), INTRODUCTION_0414)
    rank = {"system": 0}
    return fourth_pieces(sorted(entries, key=lambda each: rank.get(each.role, 1)))


def _third_answer(message: Message) -> list[Piece]:
    """Return what ChatGLM3 writes behind ``<|assistant|>``."""
    return third_pieces(third_entries([message]))[_OPENING:-1]


def _fourth_answer(message: Message) -> list[Piece]:
    """Return what GLM-4 writes behind ``<|assistant|>``."""
    return fourth_pieces(fourth_entries([message]))[_OPENING:-1] or ["\n"]


_OPENING = 3
"""Pieces up to the first ``<|assistant|>``."""


def _end(otherwise: str) -> Callable[[Message], str]:
    return lambda message: "<|observation|>" if message.tool_calls else otherwise


CHATGLM3 = ChatFormat(
    "chatglm3",
    _third,
    stops=("<eos>", "<|user|>", "<|observation|>"),
    reader=lambda messages: TurnReader(messages, PYTHON),
    skip_special=False,
    temperature=0.8,
    top_p=0.8,
    answer=_third_answer,
    opening="\n",
    calls=python_calls,
    end=_end("<eos>"),
)
GLM4 = ChatFormat(
    "glm4",
    _fourth,
    stops=("<|endoftext|>", "<|user|>", "<|observation|>"),
    reader=lambda messages: TurnReader(messages, JSON),
    skip_special=False,
    temperature=0.8,
    top_p=0.8,
    answer=_fourth_answer,
    opening="\n",
    calls=json_calls,
    end=_end("<|user|>"),
)
GLM4_0414 = ChatFormat(
    "glm4-0414",
    _fourth_0414,
    stops=GLM4.stops,
    reader=GLM4.reader,
    skip_special=False,
    temperature=0.8,
    top_p=0.8,
    answer=_fourth_answer,
    opening="\n",
    calls=json_calls,
    end=_end("<|user|>"),
)
