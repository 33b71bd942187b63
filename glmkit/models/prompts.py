"""Conversations to token ids: how passages are put before a question, and what is left out."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from ..errors import UsageError
from ..types import Message, Passage
from .about import read_about
from .files import read_json
from .formats import FORMATS, ChatFormat, Piece, Special, encode, guess_format
from .layouts import family_of
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
    "open_renderer",
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
            ids = encode(self.pieces(kept), self.tokenizer)
            if len(ids) <= room:
                return Prompt(ids, kept[-1].passages)
            shorter = shortened(kept)
            if shorter is None:
                raise UsageError(
                    f"the question takes {len(ids)} tokens and the model has room for {room}; "
                    "shorten it, or ask for fewer max_tokens"
                )
            kept = shorter

    def pieces(self, messages: Sequence[Message]) -> list[Piece]:
        """Return a conversation as the model reads it, up to where its answer begins.

        :raises UsageError: if the format has no way to write it.
        """
        chinese = speaks_chinese(messages[-1].content) and self._may_speak("zh")
        plain = [with_passages(each, "zh" if chinese else "en") for each in messages]
        return self.format.pieces(plain, self.system)

    def _may_speak(self, language: str) -> bool:
        return self.languages is None or language in self.languages


def open_renderer(
    folder: Path,
    *,
    family: str | None = None,
    languages: frozenset[str] | None = None,
    vocab_size: int | None = None,
) -> Renderer | None:
    """Return what writes prompts for the folder's model, where that is known; no weights are read.

    :param family: what the model is; None: as its files say.
    :param languages: what it speaks; None: as `glmkit.json` says.
    :param vocab_size: the model's; None: as `config.json` says.
    :raises CheckpointError: if one of the files is damaged.
    """
    about = read_about(folder)
    if family is None:
        family = family_of(folder, read_json(folder / "config.json"))
    tokenizer = Tokenizer.open(folder, family=family, vocab_size=vocab_size)
    if tokenizer is None:
        return None
    named = about.get("chat_format")
    chosen = FORMATS.get(named) if named is not None else guess_format(tokenizer, family)
    if languages is None and about.get("languages"):
        languages = frozenset(about["languages"])
    return Renderer(tokenizer, chosen, about.get("system", ""), languages) if chosen else None
