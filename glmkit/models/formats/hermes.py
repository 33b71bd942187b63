"""Calls as Hermes, Qwen and their likes write them: JSON between ``<tool_call>`` marks."""

from __future__ import annotations

import json
from collections.abc import Sequence

from ...types import Message, ToolCall
from .base import Reader, Verbatim
from .forced import json_of, name_of, parameters_of, text
from .tools import Tool, json_object, listed, offered

OPEN, CLOSE = "<tool_call>", "</tool_call>"


def reader(messages: Sequence[Message]) -> Reader:
    """Return what reads the answer to a conversation: calls are looked for where tools are."""
    return HermesReader() if offered(messages) else Verbatim()


def calls(tools: Sequence[Tool]) -> str:
    """Return the grammar of one call; see :mod:`.forced`."""
    ways, rules = [], []
    for at, tool in enumerate(tools):
        name = text(json.dumps(name_of(tool), ensure_ascii=False))
        ways.append(f'"{{\\"name\\": " {name} ", \\"arguments\\": " call_{at} "}}"')
        rules.append(f"call_{at}: {json_of(parameters_of(tool))}")
    opening, closing = text(f"{OPEN}\n"), text(f"\n{CLOSE}")
    return "\n".join([f"calls: {opening} ({' | '.join(ways)}) {closing}", *rules])


def told(tools: Sequence[Tool]) -> str:
    """Return what tells a model of tools that was never taught any."""
    return (
        f"These functions can be called:\n{listed(tools)}\n\n"
        "Answer with a call of the one that helps, as JSON with its name and its arguments:\n"
        f'{OPEN}\n{{"name": ..., "arguments": {{...}}}}\n{CLOSE}'
    )


def written(call: ToolCall) -> str:
    """Return a call as models write it."""
    made = {"name": call.name, "arguments": dict(call.arguments)}
    return f"{OPEN}\n{json.dumps(made, ensure_ascii=False, default=str)}\n{CLOSE}"


class HermesReader:
    """Shows an answer but for the calls in it; what parses as none stays text."""

    def __init__(self) -> None:
        self.calls: tuple[ToolCall, ...] = ()
        self._held = ""
        self._gap = False
        """Whether line ends that come next only part a call from what follows."""

    def push(self, text: str) -> str:
        """Take text that the model wrote; return what can be shown of it by now."""
        self._held += text
        shown = ""
        while True:
            if self._gap:
                self._held = self._held.lstrip("\n")
                self._gap = not self._held
            before, opening, inner = self._held.partition(OPEN)
            if not opening:
                keep = _begun(self._held)
                shown += self._held[: len(self._held) - keep]
                self._held = self._held[len(self._held) - keep :]
                return shown
            inner, closing, after = inner.partition(CLOSE)
            if not closing:
                self._held = opening + inner
                return shown + before
            shown += before + self._read(inner)
            self._held = after

    def finish(self) -> str:
        """Return what is left to show; the answer is over."""
        held, self._held = self._held, ""
        return held

    def _read(self, inner: str) -> str:
        """Take what stands between two marks; return it where it is no call."""
        found = json_object(inner)
        name, arguments = (found or {}).get("name"), (found or {}).get("arguments", {})
        if not isinstance(name, str) or not isinstance(arguments, dict):
            return f"{OPEN}{inner}{CLOSE}"
        self.calls += (ToolCall(name, arguments),)
        self._gap = True
        return ""


def _begun(text: str) -> int:
    """Return how many characters at the end may begin a mark."""
    sizes = range(min(len(OPEN) - 1, len(text)), 0, -1)
    return next((size for size in sizes if text.endswith(OPEN[:size])), 0)
