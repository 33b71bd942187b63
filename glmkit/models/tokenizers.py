"""Text to token ids and back, behind one small class."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

from ..texts import check_unicode
from .settling import Chain, Stage, whole

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True)
class Padded:
    """Rows of different lengths as one batch, padded on the left."""

    input_ids: Tensor
    """(B, T)."""
    attention_mask: Tensor
    """(B, T), 1 = real token; of ChatGLM-6B bool (B, 1, T, T), True = may not see."""
    position_ids: Tensor
    """(B, T), of ChatGLM-6B (B, 2, T); 0 for padding."""


class Tokenizer(ABC):
    """A vocabulary: text to ids and back.

    What users write is text: in :meth:`encode` the name of a special token is encoded like any
    other word, so that nobody can forge a turn. ``specials=True`` parses as the original tokenizer
    of the vocabulary does, which differs from one to the next.
    """

    size: int
    """How many ids there are, special ones included."""
    specials: Mapping[str, int]
    """The special tokens, by name."""
    prefix: tuple[int, ...] = ()
    """What the original tokenizer puts before a text."""
    suffix: tuple[int, ...] = ()
    """What the original tokenizer puts after a text."""
    pad_id: int = 0
    bos_id: int | None = None
    eos_id: int | None = None

    @staticmethod
    def open(
        folder: Path, *, family: str | None = None, vocab_size: int | None = None
    ) -> Tokenizer | None:
        """Return the folder's vocabulary, or None where it has none that glmkit reads.

        :param family: the model's, see :mod:`glmkit.models.families`; None: as the folder says.
        :param vocab_size: the model's; None: as `config.json` says, where there is one.
        :raises CheckpointError: if the files are damaged or belong to another model.
        """
        from .vocabularies import find

        return find(folder, family=family, vocab_size=vocab_size)

    @abstractmethod
    def encode(self, text: str, *, specials: bool = False) -> list[int]:
        """Return the ids of ``text``, without prefix and suffix.

        :param specials: parse names of special tokens as the original tokenizer does; the default
            takes them for text.
        :raises UsageError: if the text is no valid Unicode.
        """

    @abstractmethod
    def encode_batch(self, texts: Sequence[str]) -> list[list[int]]:
        """Return the ids of each text as :meth:`encode` does, all at once.

        :raises UsageError: if a text is no valid Unicode.
        """

    @abstractmethod
    def token(self, number: int) -> str:
        """Return what the vocabulary calls an id; bytes that are no text as ``<0xE4>``.

        :raises IndexError: if there is no such id.
        """

    @abstractmethod
    def spelling(self, number: int) -> bytes | None:
        """Return what an id adds to a text, in UTF-8; None for special tokens and no token at all.

        The spellings of a text's ids, joined, are :attr:`lead` and the text.
        """

    @cached_property
    def lead(self) -> str:
        """What a vocabulary puts before the first word of every text: a space, or nothing."""
        spelt = b"".join(self.spelling(each) or b"" for each in self.encode("a"))
        return " " if spelt == b" a" else ""

    @abstractmethod
    def raw(self, ids: Iterable[int], *, skip_special: bool = True) -> str:
        """Return the text of ``ids`` before the :meth:`stages`."""

    def stages(self) -> list[Stage]:
        """Return fresh stages that decoded text goes through."""
        return []

    def special(self, name: str) -> int | None:
        """Return the id of the special token ``name``."""
        return self.specials.get(name)

    def decode(self, ids: Iterable[int], *, skip_special: bool = True) -> str:
        """Return the text of ``ids`` as the original tokenizer does.

        :param skip_special: leave special tokens out, as far as the original tokenizer does:
            ChatGLM3's prints them always, ChatGLM2's never.
        """
        return whole(self.raw(ids, skip_special=skip_special), self.stages())

    def wrap(self, ids: Sequence[int], answer: Sequence[int] | None = None) -> list[int]:
        """Return a prompt with prefix and suffix, and with an answer and its end if one is given.

        That is a row of the published fine-tuning code.
        """
        row = [*self.prefix, *ids, *self.suffix]
        if answer is None:
            return row
        end = [] if self.eos_id is None else [self.eos_id]
        return [*row, *answer, *end]

    def pad(self, rows: Sequence[Sequence[int]]) -> Padded:
        """Return rows of ids as one batch, padded on the left to the longest.

        :param rows: one or more, each with prefix and suffix already.
        """
        import torch

        length = max(map(len, rows))
        ids = torch.full((len(rows), length), self.pad_id, dtype=torch.long)
        mask = torch.zeros_like(ids)
        positions = torch.zeros_like(ids)
        for at, row in enumerate(rows):
            start = length - len(row)
            ids[at, start:] = torch.tensor(row, dtype=torch.long)
            mask[at, start:] = 1
            positions[at, start:] = torch.arange(len(row))
        return Padded(ids, mask, positions)


def check_texts(texts: Sequence[str]) -> None:
    """Refuse texts with halves of characters in them, which vocabularies have no ids for.

    :raises UsageError: naming the first one.
    """
    for text in texts:
        check_unicode(text, "a text to encode")


class Detokenizer:
    """Turns one row's tokens into text as they come, never showing half a character.

    The pieces joined are what :meth:`Tokenizer.decode` gives for all tokens at once, but for half a
    character at the very end, which is left out.
    """

    def __init__(self, tokenizer: Tokenizer, *, skip_special: bool = True) -> None:
        self._tokenizer = tokenizer
        self._skip_special = skip_special
        self._stages = Chain(*tokenizer.stages())
        self._shown: list[int] = []
        """The latest tokens already shown: what a token adds depends on those before it."""
        self._before = ""
        """Their text on its own."""
        self._waiting: list[int] = []

    @property
    def lead(self) -> str:
        """What the first token may have before the text, and is none of it."""
        return self._tokenizer.lead

    def push(self, token: int) -> str:
        """Take a token; return the text that is complete by now."""
        self._waiting.append(token)
        piece = self._piece()
        if not piece or piece.endswith("\ufffd"):
            return ""
        alone = self._text(self._waiting)
        # Tokens that say nothing on their own, such as a space, are no context yet.
        self._shown = self._waiting if alone else self._shown + self._waiting
        self._before = alone or self._text(self._shown)
        self._waiting = []
        return self._stages.push(piece)

    def finish(self) -> str:
        """Return the complete characters that are still waiting."""
        piece = self._piece().rstrip("\ufffd") if self._waiting else ""
        return self._stages.push(piece) + self._stages.finish()

    def _piece(self) -> str:
        return self._text(self._shown + self._waiting)[len(self._before) :]

    def _text(self, ids: list[int]) -> str:
        return self._tokenizer.raw(ids, skip_special=self._skip_special)
