"""Answers as OpenAI's API writes them, whole and piece by piece."""

from __future__ import annotations

import json
import secrets
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from glmkit import Chunk, Passage, TokenLogprob, ToolCall, Usage

from .odds import Json, TextOdds, chat_odds

_REASONS: Mapping[str, str] = {"length": "length", "tool_calls": "tool_calls"}
"""Every other end is one of its own: ``stop``."""


def new_id(kind: str) -> str:
    """Return a name for one answer or call."""
    return f"{kind}-{secrets.token_hex(12)}"


@dataclass
class Choice:
    """One answer as it comes."""

    text: list[str] = field(default_factory=list)
    odds: list[TokenLogprob] = field(default_factory=list)
    last: Chunk | None = None

    def take(self, chunk: Chunk) -> None:
        """Add a piece."""
        if chunk.text:
            self.text.append(chunk.text)
        self.odds += chunk.logprobs
        if chunk.finish_reason is not None:
            self.last = chunk

    @property
    def reason(self) -> str:
        """Why it ended."""
        return reason_of(self.last)

    @property
    def usage(self) -> Usage:
        """Its tokens."""
        return (self.last and self.last.usage) or Usage()


def reason_of(last: Chunk | None) -> str:
    """Return why an answer ended, in OpenAI's words."""
    return _REASONS.get((last and last.finish_reason) or "stop", "stop")


def usage_of(choices: Sequence[Choice], *, prompts: int = 1) -> Json:
    """Return the tokens of all answers; a prompt counts once, however many answers it has.

    :param prompts: how many there were; their answers follow each other.
    """
    each = max(1, len(choices) // prompts)
    asked = sum(choice.usage.prompt_tokens for choice in choices[::each])
    written = sum(choice.usage.completion_tokens for choice in choices)
    return {
        "prompt_tokens": asked,
        "completion_tokens": written,
        "total_tokens": asked + written,
    }


def sources_of(passages: Sequence[Passage]) -> list[Json]:
    """Return where an answer comes from; [n] in it is the n-th of them."""
    names = ("path", "location", "score", "text")
    return [{name: getattr(each, name) for name in names} for each in passages]


@dataclass(frozen=True)
class ChatWriter:
    """Writes one chat completion.

    :param model: the name that was asked.
    """

    model: str
    id: str = field(default_factory=lambda: new_id("chatcmpl"))
    created: int = field(default_factory=lambda: int(time.time()))

    def whole(self, choices: Sequence[Choice]) -> Json:
        """Return the answer in one piece."""
        sources = sources_of(choices[0].last.sources if choices[0].last else ())
        told = [self._choice(at, each) for at, each in enumerate(choices)]
        answer = self._head("chat.completion") | {"choices": told, "usage": usage_of(choices)}
        return answer | ({"sources": sources} if sources else {})

    def _choice(self, at: int, choice: Choice) -> Json:
        text = "".join(choice.text)
        calls = _calls(choice.last.tool_calls if choice.last else ())
        message: Json = {"role": "assistant", "content": text if text or not calls else None}
        if calls:
            message["tool_calls"] = calls
        return {
            "index": at,
            "message": message,
            "logprobs": chat_odds(choice.odds),
            "finish_reason": choice.reason,
        }

    def opening(self, at: int) -> Json:
        """Return the piece that begins an answer."""
        return self._piece(at, {"role": "assistant", "content": ""})

    def pieces(self, at: int, chunk: Chunk) -> list[Json]:
        """Return a piece as it is sent: what is said, what is called, and how it ends."""
        found, odds = [], chat_odds(chunk.logprobs)
        if chunk.text:
            said = None if chunk.finish_reason is not None else odds
            found.append(self._piece(at, {"content": chunk.text}, odds=said))
        if chunk.tool_calls:
            calls = [each | {"index": n} for n, each in enumerate(_calls(chunk.tool_calls))]
            found.append(self._piece(at, {"tool_calls": calls}))
        if chunk.finish_reason is not None:
            last = self._piece(at, {}, reason_of(chunk), odds)
            sources = sources_of(chunk.sources)
            found.append(last | ({"sources": sources} if sources else {}))
        return found

    def usage(self, choices: Sequence[Choice]) -> Json:
        """Return the piece that counts the tokens."""
        return self._head("chat.completion.chunk") | {"choices": [], "usage": usage_of(choices)}

    def _piece(
        self, at: int, delta: Json, reason: str | None = None, odds: Json | None = None
    ) -> Json:
        choice = {"index": at, "delta": delta, "logprobs": odds, "finish_reason": reason}
        return self._head("chat.completion.chunk") | {"choices": [choice]}

    def _head(self, kind: str) -> Json:
        return {"id": self.id, "object": kind, "created": self.created, "model": self.model}


@dataclass(frozen=True)
class TextWriter:
    """Writes one completion of a text, or of several.

    :param prompts: how many texts are gone on with.
    """

    model: str
    prompts: int = 1
    heads: Sequence[str] = ()
    """What each answer begins with, where the prompts are to be repeated."""
    id: str = field(default_factory=lambda: new_id("cmpl"))
    created: int = field(default_factory=lambda: int(time.time()))
    _places: dict[int, TextOdds] = field(default_factory=dict)

    def whole(self, choices: Sequence[Choice]) -> Json:
        """Return the answer in one piece."""
        told = [
            self._choice(at, self._begin(at) + "".join(each.text), each.reason, each.odds)
            for at, each in enumerate(choices)
        ]
        counted = usage_of(choices, prompts=self.prompts)
        return self._head() | {"choices": told, "usage": counted}

    def opening(self, at: int) -> Json | None:
        """Return the piece that begins an answer, if any."""
        head = self._begin(at)
        return self._head() | {"choices": [self._choice(at, head, None)]} if head else None

    def pieces(self, at: int, chunk: Chunk) -> list[Json]:
        """Return a piece as it is sent."""
        reason = None if chunk.finish_reason is None else reason_of(chunk)
        return [self._head() | {"choices": [self._choice(at, chunk.text, reason, chunk.logprobs)]}]

    def usage(self, choices: Sequence[Choice]) -> Json:
        """Return the piece that counts the tokens."""
        return self._head() | {"choices": [], "usage": usage_of(choices, prompts=self.prompts)}

    def _begin(self, at: int) -> str:
        return self.heads[at] if self.heads else ""

    def _choice(
        self, at: int, text: str, reason: str | None, odds: Sequence[TokenLogprob] = ()
    ) -> Json:
        told = self._places.setdefault(at, TextOdds()).told(odds) if odds else None
        return {"index": at, "text": text, "logprobs": told, "finish_reason": reason}

    def _head(self) -> Json:
        return {
            "id": self.id,
            "object": "text_completion",
            "created": self.created,
            "model": self.model,
        }


def _calls(calls: Sequence[ToolCall]) -> list[Json]:
    return [
        {
            "id": new_id("call"),
            "type": "function",
            "function": {
                "name": each.name,
                "arguments": json.dumps(dict(each.arguments), ensure_ascii=False, default=str),
            },
        }
        for each in calls
    ]
