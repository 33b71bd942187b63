"""The format of the embedded default: ``<|im_start|>role``, content, ``<|im_end|>``."""

from __future__ import annotations

from collections.abc import Sequence

from ...types import Message
from . import hermes
from .base import ChatFormat, Piece, Special, refuse_tools

_ROLES = {"observation": "tool"}


def _pieces(messages: Sequence[Message], system: str) -> list[Piece]:
    # What a tool found can be read; an offer of tools would be dropped in silence.
    refuse_tools([each for each in messages if each.tools], "a model with this chat format")
    turns = [(_ROLES.get(each.role, each.role), _said(each)) for each in messages]
    if system and messages[0].role != "system":
        turns.insert(0, ("system", system))
    pieces: list[Piece] = []
    for role, content in turns:
        pieces += [Special("<|im_start|>"), f"{role}\n{content}", Special("<|im_end|>"), "\n"]
    return [*pieces, Special("<|im_start|>"), "assistant\n"]


def _said(message: Message) -> str:
    """Return what a message says, and what it called."""
    return "\n".join([*filter(None, [message.content]), *map(hermes.written, message.tool_calls)])


def _answer(message: Message) -> list[Piece]:
    refuse_tools((message,), "a model with this chat format")
    return [message.content]


CHATML = ChatFormat(
    "chatml",
    _pieces,
    stops=("<|im_end|>",),
    reader=hermes.reader,
    answer=_answer,
    calls=hermes.calls,
    told=hermes.told,
)
