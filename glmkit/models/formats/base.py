"""What a chat format is: conversations written out as pieces, and answers read back."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

from ...errors import CheckpointError, UsageError
from ...types import Message, ToolCall
from ..tokenizers import Tokenizer


class Special(NamedTuple):
    """A special token, by name."""

    name: str


Piece = Special | str


class Reader(Protocol):
    """Reads one answer as its text comes."""

    calls: tuple[ToolCall, ...]
    """What the answer asks for; complete after :meth:`finish`."""

    def push(self, text: str) -> str:
        """Take text that the model wrote; return what can be shown of it by now."""
        ...

    def finish(self) -> str:
        """Return what is left to show; the answer is over."""
        ...


class Verbatim:
    """Shows an answer as it is."""

    calls: tuple[ToolCall, ...] = ()

    def push(self, text: str) -> str:
        """Return the text."""
        return text

    def finish(self) -> str:
        """Return nothing: all has been shown."""
        return ""


def _as_it_is(message: Message) -> list[Piece]:
    return [message.content]


def _verbatim(messages: Sequence[Message]) -> Reader:
    return Verbatim()


@dataclass(frozen=True)
class ChatFormat:
    """How one family of models writes a conversation."""

    name: str
    pieces: Callable[[Sequence[Message], str], list[Piece]]
    """Takes the messages and the default system text; ends where the answer begins."""
    stops: tuple[str, ...]
    """Special tokens that end an answer."""
    reader: Callable[[Sequence[Message]], Reader] = _verbatim
    """Takes the conversation, returns what reads the answer to it."""
    skip_special: bool = True
    """Leave special tokens out of the answer's text; the original code keeps them."""
    temperature: float = 0.0
    """As published, for folders without `generation_config.json`; 0 is greedy."""
    top_p: float = 1.0
    """As published, for folders without `generation_config.json`."""
    answer: Callable[[Message], list[Piece]] = _as_it_is
    """Takes what an assistant says; returns what the model writes to say it, up to a stop."""
    opening: str = ""
    """What stands before all that an answer says: an empty line of metadata."""
    calls: Callable[[Sequence[Mapping[str, Any]]], str] | None = None
    """Takes tools, returns the grammar of a call of one of them, see :mod:`.forced`; None: the
    model knows none, or its calls are not read."""
    told: Callable[[Sequence[Mapping[str, Any]]], str] | None = None
    """Takes tools, returns what tells of them where a call is required of a model that was never
    taught any; None: :attr:`pieces` writes them."""
    end: Callable[[Message], str] | None = None
    """Takes the same, returns the stop token that follows; None: the first of :attr:`stops`."""


def encode(pieces: Sequence[Piece], tokenizer: Tokenizer) -> list[int]:
    """Return the token ids of rendered pieces.

    :raises CheckpointError: if the vocabulary lacks a special token of the format.
    """
    ids: list[int] = []
    for piece in pieces:
        if isinstance(piece, str):
            ids += tokenizer.encode(piece)
            continue
        number = tokenizer.special(piece.name)
        if number is None:
            raise CheckpointError(
                f"the vocabulary has no {piece.name!r}, which the chat format needs; "
                "the folder mixes two models"
            )
        ids.append(number)
    return ids


def refuse_tools(messages: Sequence[Message], name: str) -> None:
    """Refuse what a format without tools has no way to write.

    :raises UsageError: naming the role or field that has no place.
    """
    for message in messages:
        asks = message.role in ("tool", "observation") or message.tools or message.tool_calls
        if asks:
            raise UsageError(
                f"{name} was never taught tools: a message with role {message.role!r}, tools or "
                "tool_calls cannot be written for it; use ChatGLM3 or GLM-4"
            )
