"""Calls as Hermes, Qwen and their likes write them: JSON between ``<tool_call>`` marks."""

from __future__ import annotations

import json
from collections.abc import Sequence

from ...types import Message, ToolCall
from .base import Reader, Verbatim
from .forced import json_of, name_of, parameters_of, text
from .tools import LONGEST_CALL, Tool, json_object, listed, offered

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
        self._tried = 0
        """Where behind the opening mark to look for a closing one: those before are in a string."""

    def push(self, text: str) -> str:
        """Take text that the model wrote; return what can be shown of it by now."""
        self._held += text
        return self._advance(over=False)

    def finish(self) -> str:
        """Return what is left to show; the answer is over."""
        shown = self._advance(over=True) + self._held
        self._held = ""
        return shown

    def _advance(self, *, over: bool) -> str:
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
            end = self._end(inner, over=over)
            if end < 0:
                self._held = opening + inner
                return shown + before
            shown += before + self._read(inner[:end])
            self._held, self._tried = inner[end + len(CLOSE) :], 0

    def _end(self, inner: str, *, over: bool) -> int:
        """Return where the closing mark begins; -1: it is still to come."""
        while (at := inner.find(CLOSE, self._tried)) >= 0:
            if _called(inner[:at]) is not None:
                return at
            if at > LONGEST_CALL or not _in_string(inner[:at]):
                return inner.find(CLOSE)
            self._tried = at + len(CLOSE)
        over = over or len(inner) > LONGEST_CALL
        return inner.find(CLOSE) if over and self._tried else -1

    def _read(self, inner: str) -> str:
        """Take what stands between two marks; return it where it is no call."""
        call = _called(inner)
        if call is None:
            return f"{OPEN}{inner}{CLOSE}"
        self.calls += (call,)
        self._gap = True
        return ""


def _called(inner: str) -> ToolCall | None:
    found = json_object(inner)
    name, arguments = (found or {}).get("name"), (found or {}).get("arguments", {})
    known = isinstance(name, str) and isinstance(arguments, dict)
    return ToolCall(str(name), arguments) if known else None


def _in_string(text: str) -> bool:
    """Tell whether JSON breaks off within a string."""
    try:
        json.loads(text)
    except json.JSONDecodeError as error:
        return error.msg.startswith("Unterminated string")
    except (ValueError, RecursionError):  # numbers of thousands of digits, nested too deep
        return False
    return False


def _begun(text: str) -> int:
    """Return how many characters at the end may begin a mark."""
    sizes = range(min(len(OPEN) - 1, len(text)), 0, -1)
    return next((size for size in sizes if text.endswith(OPEN[:size])), 0)
