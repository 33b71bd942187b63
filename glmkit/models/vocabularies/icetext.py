"""The vocabulary of ChatGLM-6B: SentencePiece over text whose white space became tokens."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

import sentencepiece

from ..settling import Settling, Stage
from ..spelling import of_piece
from ..tokenizers import Padded, Tokenizer, check_texts

if TYPE_CHECKING:
    import torch

_LONGEST_BLANK = 80
_BLANKS = re.compile(rf" {{2,{_LONGEST_BLANK}}}")
_TYPED = ("<sop>", "<eop>", "<unk>", "<pad>", "[MASK]")
"""What the original tokenizer reads as special tokens; it also drops them on request."""
_OTHERS = ("<s>", "</s>", "[gMASK]", "[sMASK]", "<unused_0>", "<ENC>", "<dBLOCK>")
_BLANK_NAMES = tuple(f"<|blank_{size}|>" for size in range(2, _LONGEST_BLANK + 1))
SPACES = {"<n>": "\n", "<|tab|>": "\t"} | {
    name: " " * size for size, name in enumerate(_BLANK_NAMES, 2)
}
_SPACE = re.compile(r"<n>|<\|tab\|>|<\|blank_(?:[2-9]|[1-7]\d|80)\|>")
_PART_OF_SPACE = re.compile(r"<(?:n|\|[a-z]{0,5}_?\d{0,2}\|?)?\Z")
_CLOSED_UP = (" .", " ?", " !", " ,", " ' ", " n't", " 'm", " 's", " 've", " 're")
_MAY_CLOSE_UP = re.compile(r" [ ']*(?:n'?|(?<=')[vr])?\Z")
_CUT = re.compile("|".join(re.escape(each) for each in _TYPED))


class IceText(Tokenizer):
    """The vocabulary in `ice_text.model`.

    The model normalises: full-width punctuation becomes ASCII, for example.

    :param shift: how many image tokens come first: 20,000 in the earliest checkpoints.
    """

    def __init__(self, inner: sentencepiece.SentencePieceProcessor, *, shift: int = 0) -> None:
        self._inner = inner
        self._shift = shift
        self._text: list[str] = [inner.id_to_piece(each) for each in range(inner.get_piece_size())]
        self.size = len(self._text) + shift
        names = (*_TYPED, *_OTHERS, *SPACES)
        self.specials = {each: inner.piece_to_id(each) + shift for each in names}
        self.pad_id = self.specials["<pad>"]
        self.bos_id, self.eos_id = self.specials["<sop>"], self.specials["<eop>"]
        self.suffix = (self.specials["[gMASK]"], self.bos_id)
        self._dropped = frozenset(self.specials[each] for each in _TYPED)

    def encode(self, text: str, *, specials: bool = False) -> list[int]:
        """Return the ids of ``text``, without prefix and suffix."""
        if not specials:
            return self.encode_batch([text])[0]
        ids: list[int] = []
        end = 0
        for found in _CUT.finditer(text):
            # The original takes the white space around a special token away.
            ids += self.encode(_between(text, end, found.start())) + [self.specials[found[0]]]
            end = found.end()
        rest = text[end:]
        return ids + self.encode(rest.lstrip() if end else rest)

    def encode_batch(self, texts: Sequence[str]) -> list[list[int]]:
        """Return the ids of each text."""
        check_texts(texts)
        rows: list[list[int]] = self._inner.encode([_spaces_named(each) for each in texts])
        return [[number + self._shift for number in row] for row in rows] if self._shift else rows

    def token(self, number: int) -> str:
        """Return what the vocabulary calls an id."""
        if number < self._shift:
            return f"<image_{number}>"
        return self._text[number - self._shift]

    def spelling(self, number: int) -> bytes | None:
        """Return what an id adds to a text, in UTF-8; None for special tokens and pictures."""
        name = self.token(number) if self._shift <= number < self.size else None
        if name in SPACES:
            return SPACES[name].encode()
        return None if name is None or name in self.specials else of_piece(name)

    def raw(self, ids: Iterable[int], *, skip_special: bool = True) -> str:
        """Return the text of ``ids``, its white space still named."""
        dropped = self._dropped if skip_special else {self.pad_id}
        pieces = [self.token(each) for each in ids if each not in dropped and 0 <= each < self.size]
        text: str = self._inner.decode_pieces(pieces)
        return text

    def stages(self) -> list[Stage]:
        """Give white space back, then close up punctuation as in English."""
        return [
            Settling(lambda text: _SPACE.sub(lambda name: SPACES[name[0]], text), _PART_OF_SPACE),
            Settling(_closed_up, _MAY_CLOSE_UP),
        ]

    def pad(self, rows: Sequence[Sequence[int]]) -> Padded:
        """Return rows as one batch, with the mask and the two axes of positions of this model."""
        import torch

        padded = super().pad(rows)
        count, length = padded.input_ids.shape
        blocked = torch.ones(count, 1, length, length, dtype=torch.bool)
        positions = torch.zeros(count, 2, length, dtype=torch.long)
        for at, row in enumerate(rows):
            start = length - len(row)
            blocked[at, 0, start:, start:] = self._blocked(row)
            positions[at, :, start:] = self._positions(row)
        return Padded(padded.input_ids, blocked, positions)

    def _context(self, row: Sequence[int]) -> int:
        """Return how many tokens come before <sop>: they all see each other."""
        return row.index(self.bos_id) if self.bos_id in row else len(row)

    def _blocked(self, row: Sequence[int]) -> torch.Tensor:
        import torch

        blocked = torch.ones(len(row), len(row), dtype=torch.bool).triu(1)
        blocked[:, : self._context(row)] = False
        return blocked

    def _positions(self, row: Sequence[int]) -> torch.Tensor:
        import torch

        context = self._context(row)
        positions = torch.zeros(2, len(row), dtype=torch.long)
        positions[0] = torch.arange(len(row))
        # The tokenizer prefers [MASK], the model [gMASK]: see there.
        holes = [self.specials[each] for each in ("[MASK]", "[gMASK]")]
        place = next((row.index(each) for each in holes if each in row), None)
        if place is not None:
            positions[0, context:] = place
        positions[1, context:] = torch.arange(1, len(row) - context + 1)
        return positions


def _between(text: str, start: int, end: int) -> str:
    part = text[start:end].rstrip()
    return part.lstrip() if start else part


def _spaces_named(text: str) -> str:
    named = text.replace("\n", "<n>").replace("\t", "<|tab|>")
    return _BLANKS.sub(lambda run: f"<|blank_{len(run[0])}|>", named)


def _closed_up(text: str) -> str:
    for each in _CLOSED_UP:
        text = text.replace(each, each.strip(" ") if each != " ' " else "'")
    return text
