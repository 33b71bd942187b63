"""Conversations to token ids: how passages are put before a question, and what is left out."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

from ..errors import UsageError
from ..types import Message, Passage
from .about import read_about
from .files import read_json
from .formats import FORMATS, ChatFormat, Piece, Special, encode, guess_format
from .layouts import family_of
from .passages import Shortening, checked, speaks_chinese, with_passages
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
        rest = Shortening(checked(messages))
        # Each piece is encoded once. Of equal texts only some may be a template's own work.
        encoded = lru_cache(None, typed=True)(self._encoded)

        def prompt(things: int) -> Prompt:
            kept = rest.without(things)
            ids = [number for piece in self.pieces(kept) for number in encoded(piece)]
            return Prompt(ids, kept[-1].passages)

        whole = prompt(0)
        if len(whole.ids) <= room:
            return whole
        least = prompt(rest.most)
        if len(least.ids) > room:
            raise UsageError(
                f"the question takes {len(least.ids)} tokens and the model has room for {room}; "
                "shorten it, or ask for fewer max_tokens"
            )
        return prompt(_fewest(lambda things: len(prompt(things).ids) <= room, rest.most))

    def _encoded(self, piece: Piece) -> list[int]:
        return encode([piece], self.tokenizer)

    def pieces(self, messages: Sequence[Message]) -> list[Piece]:
        """Return a conversation as the model reads it, up to where its answer begins.

        :raises UsageError: if the format has no way to write it.
        """
        chinese = speaks_chinese(messages[-1].content) and self._may_speak("zh")
        plain = [with_passages(each, "zh" if chinese else "en") for each in messages]
        return self.format.pieces(plain, self.system)

    def _may_speak(self, language: str) -> bool:
        return self.languages is None or language in self.languages


def _fewest(enough: Callable[[int], bool], most: int) -> int:
    """Return how few things have to go, where leaving out none does not do and ``most`` does.

    What is left with one thing less is never longer, so halves can be searched; from where little
    is left, as that is what a long conversation is cut to, and soon looked at.
    """
    too_few, step = most - 1, 1
    while too_few > 0 and enough(too_few):
        most, step = too_few, 2 * step
        too_few = max(0, too_few - step)
    between = range(too_few + 1, most)
    return too_few + 1 + bisect_left(between, True, key=enough)


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
