"""Conversations to token ids: how passages are put before a question, and what is left out."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from ..errors import UsageError
from ..types import Message, Passage
from .formats import FORMATS, ChatFormat, Piece, Special, encode, guess_format
from .passages import checked, shortened, speaks_chinese, with_passages
from .tokenizers import Tokenizer

__all__ = [
    "FORMATS",
    "ChatFormat",
    "Piece",
    "Prompt",
    "Renderer",
    "Special",
    "encode",
    "guess_format",
    "speaks_chinese",
    "with_passages",
]


@dataclass(frozen=True)
class Prompt:
    """A conversation that fits."""

    ids: list[int]
    passages: tuple[Passage, ...]
    """The passages that the last message kept; [n] in the answer is the n-th of them."""


@dataclass(frozen=True)
class Renderer:
    """Renders conversations for one model."""

    tokenizer: Tokenizer
    format: ChatFormat
    system: str = ""
    """Said where a conversation brings no system message of its own."""
    languages: frozenset[str] | None = None

    def render(self, messages: Sequence[Message], *, room: int) -> Prompt:
        """Return the prompt, in at most ``room`` tokens.

        What does not fit is dropped: first passages, lowest score first, then the oldest turns.
        The system message and the question always stay.

        :raises UsageError: if there is no question, or even the question alone is too long.
        """
        kept = checked(messages)
        while True:
            ids = self._ids(kept)
            if len(ids) <= room:
                return Prompt(ids, kept[-1].passages)
            shorter = shortened(kept)
            if shorter is None:
                raise UsageError(
                    f"the question takes {len(ids)} tokens and the model has room for {room}; "
                    "shorten it, or ask for fewer max_tokens"
                )
            kept = shorter

    def _ids(self, messages: Sequence[Message]) -> list[int]:
        chinese = speaks_chinese(messages[-1].content) and self._may_speak("zh")
        plain = [with_passages(each, "zh" if chinese else "en") for each in messages]
        return encode(self.format.pieces(plain, self.system), self.tokenizer)

    def _may_speak(self, language: str) -> bool:
        return self.languages is None or language in self.languages
