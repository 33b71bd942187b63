"""Reading what ChatGLM3 and GLM-4 answer: turns, each with a line of metadata, and tool calls."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from typing import NamedTuple

from ...types import Message, ToolCall
from .glm4_tools import BUILT_IN
from .rounds import PlainReader
from .tools import json_object, names_of, offered, python_call, unfenced

TURN = "<|assistant|>"
"""Begins another turn within one answer."""
_NAME = re.compile(r"[A-Za-z_][\w.\-]{0,63}", re.ASCII)
INTERPRETER = "interpreter"


class Turn(NamedTuple):
    """One turn of an answer, as the original code keeps it in its history."""

    metadata: str
    content: str

    @property
    def says(self) -> str | None:
        """What it says; None where it addresses a tool."""
        return None if self.metadata.strip() else self.content.strip()


def turns_of(answer: str) -> list[Turn]:
    """Return the turns of a whole answer; what has no metadata is stripped."""
    turns: list[Turn] = []
    for part in answer.split(TURN):
        metadata, newline, content = part.partition("\n")
        turn = Turn(metadata, content) if newline else Turn("", part)
        turns.append(turn if turn.says is None else Turn(turn.metadata, turn.says))
    return turns


class Calls(NamedTuple):
    """How one generation writes its calls."""

    begins: Callable[[str, str], bool]
    """Takes a name and the beginning of what is said to it: may this be a call?"""
    parse: Callable[[str, str], ToolCall | None]
    """Takes a name and what is said to it; None where that is no call."""


def _begins_python(name: str, content: str) -> bool:
    start = content.lstrip()
    openings = ("```",) if name == INTERPRETER else ("```", "tool_call(", "{")
    return any(start.startswith(each) or each.startswith(start) for each in openings)


def _parse_python(name: str, content: str) -> ToolCall | None:
    code = unfenced(content)
    if name == INTERPRETER:
        return None if code is None else ToolCall(name, {"code": code})
    text = content if code is None else code
    arguments = python_call(text)
    if arguments is None:
        arguments = json_object(text)
    return None if arguments is None else ToolCall(name, arguments)


def _begins_json(name: str, content: str) -> bool:
    start = content.lstrip()
    if name == INTERPRETER:
        return start.startswith("```") or "```".startswith(start)
    return name in BUILT_IN or start[:1] in ("", "{")


def _parse_json(name: str, content: str) -> ToolCall | None:
    code = unfenced(content)
    if name == INTERPRETER:
        return None if code is None else ToolCall(name, {"code": code})
    if name in BUILT_IN:
        argument = "prompt" if name == "cogview" else "code"
        return ToolCall(name, {argument: content.strip() if code is None else code})
    arguments = json_object(content)
    return None if arguments is None else ToolCall(name, arguments)


PYTHON = Calls(_begins_python, _parse_python)
JSON = Calls(_begins_json, _parse_json)


class TurnReader:
    """Shows what an answer says and collects the calls it makes.

    A turn is a call if its first line is a name and what follows parses as a call. Names are those
    of the tools on offer, any plain identifier where tools are on offer at all, and
    ``interpreter``. Everything else is text, its first line included. Text is shown as it comes;
    what may still become a call is held back.
    """

    def __init__(self, messages: Sequence[Message], style: Calls) -> None:
        tools = offered(messages)
        self._names = names_of(tools) | {INTERPRETER}
        self._any = bool(tools)
        self._style = style
        self._tail = ""
        self._turn = ""
        self._text: PlainReader | None = None
        self._said = False
        self._gap = ""
        self.calls: tuple[ToolCall, ...] = ()

    def push(self, text: str) -> str:
        """Take text that the model wrote; return what can be shown of it by now."""
        *turns, self._tail = (self._tail + text).split(TURN)
        shown = "".join(self._feed(each) + self._close() for each in turns)
        kept = _overlap(self._tail)
        ready, self._tail = self._tail[: len(self._tail) - kept], self._tail[-kept or None :]
        self._tail = self._tail if kept else ""
        return shown + self._feed(ready)

    def finish(self) -> str:
        """Return what is left to show; the answer is over."""
        tail, self._tail = self._tail, ""
        return self._feed(tail) + self._close()

    def _feed(self, text: str) -> str:
        if self._text is not None:
            return self._spaced(self._text.push(text))
        self._turn += text
        return "" if self._may_be_call() else self._say()

    def _close(self) -> str:
        """End a turn."""
        metadata, newline, content = self._turn.partition("\n")
        call = self._style.parse(metadata.strip(), content) if newline else None
        if self._text is None and call is not None and self._is_name(metadata.strip()):
            self.calls += (call,)
            self._turn = ""
            return ""
        shown = self._say() if self._text is None else ""
        rest = self._text.finish() if self._text is not None else ""
        shown += self._spaced(rest)
        self._text, self._turn, self._gap = None, "", "\n" if self._said else ""
        return shown

    def _say(self) -> str:
        """Decide that the turn is text."""
        self._text = PlainReader()
        return self._spaced(self._text.push(self._turn))

    def _spaced(self, text: str) -> str:
        """Put what parts turns before the first text of a later one."""
        if not text:
            return ""
        shown, self._gap, self._said = self._gap + text, "", True
        return shown

    def _may_be_call(self) -> bool:
        line, newline, content = self._turn.partition("\n")
        name = line.strip()
        if newline:
            return bool(name) and self._is_name(name) and self._style.begins(name, content)
        if not name:
            return True
        known = any(each.startswith(name) for each in self._names)
        return known or (self._any and _NAME.fullmatch(name) is not None)

    def _is_name(self, name: str) -> bool:
        return name in self._names or (self._any and _NAME.fullmatch(name) is not None)


def _overlap(text: str) -> int:
    """Return how many characters at the end may begin another turn."""
    sizes = range(min(len(TURN) - 1, len(text)), 0, -1)
    return next((size for size in sizes if text.endswith(TURN[:size])), 0)
