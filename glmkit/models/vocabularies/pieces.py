"""The vocabulary of ChatGLM2 and ChatGLM3: SentencePiece, and special tokens after its end."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence

import sentencepiece

from ..spelling import of_piece
from ..tokenizers import Tokenizer, check_texts

NAMES = ("[MASK]", "[gMASK]", "[sMASK]", "sop", "eop")
ROLES = ("<|system|>", "<|user|>", "<|assistant|>", "<|observation|>")


class Pieces(Tokenizer):
    """The vocabulary in `tokenizer.model` of ChatGLM2 and ChatGLM3.

    :param roles: ChatGLM3's: role tokens, and special tokens are printed.
    :param added: names of ChatGLM3's later `tokenizer_config.json`, which its tokenizer parses in
        any text and prints between spaces.
    """

    def __init__(
        self,
        inner: sentencepiece.SentencePieceProcessor,
        *,
        roles: bool = False,
        added: Mapping[str, int] | None = None,
    ) -> None:
        self._inner = inner
        self._pieces: int = inner.get_piece_size()
        self._text: list[str] = [inner.id_to_piece(each) for each in range(self._pieces)]
        names = (*NAMES, *(ROLES if roles else ()))
        self._after: tuple[str, ...] = names
        after = {name: self._pieces + at for at, name in enumerate(names)}
        self.size = self._pieces + len(names)
        self.bos_id, self.eos_id, self.pad_id = inner.bos_id(), inner.eos_id(), inner.unk_id()
        self.specials = {
            **after,
            **{"<bos>": self.bos_id, "<eos>": self.eos_id, "<pad>": self.pad_id},
        }
        self.prefix = (after["[gMASK]"], after["sop"])
        silent = {self.bos_id: "", self.eos_id: "", self.pad_id: ""}
        self._named = {at: name if roles else "" for name, at in after.items()} | silent
        self._added = {number: name for name, number in (added or {}).items()}
        parsed = list(self._added.values()) or list(ROLES if roles else ())
        longest_first = sorted(map(re.escape, parsed), key=len, reverse=True)
        self._typed = re.compile("|".join(longest_first)) if parsed else None

    def encode(self, text: str, *, specials: bool = False) -> list[int]:
        """Return the ids of ``text``, without prefix and suffix.

        Parsed on request are ChatGLM3's role tokens, or what its later files add; ChatGLM2 has
        nothing to parse.
        """
        if not specials or self._typed is None:
            return self.encode_batch([text])[0]
        ids: list[int] = []
        end = 0
        for found in self._typed.finditer(text):
            ids += self.encode(text[end : found.start()]) + [self.specials[found[0]]]
            end = found.end()
        return ids + self.encode(text[end:])

    def encode_batch(self, texts: Sequence[str]) -> list[list[int]]:
        """Return the ids of each text."""
        check_texts(texts)
        rows: list[list[int]] = self._inner.encode(list(texts))
        return rows

    def token(self, number: int) -> str:
        """Return what the vocabulary calls an id."""
        if number >= self._pieces:
            return self._after[number - self._pieces]
        return self._text[number]

    def spelling(self, number: int) -> bytes | None:
        """Return what an id adds to a text, in UTF-8; None for special tokens."""
        if number in self._named or number in self._added or not 0 <= number < self._pieces:
            return None
        return of_piece(self._text[number])

    def raw(self, ids: Iterable[int], *, skip_special: bool = True) -> str:
        """Return the text of ``ids``: of special tokens what the original tokenizer prints."""
        parts: list[str] = []
        pieces: list[str] = []
        for number in ids:
            if number in self._added:
                parts += [self._joined(pieces), self._added[number]]
                pieces = []
            elif number in self._named:
                pieces.append(self._named[number])
            elif 0 <= number < self._pieces:
                pieces.append(self._text[number])
        parts.append(self._joined(pieces))
        return " ".join(each for each in parts if each)

    def _joined(self, pieces: list[str]) -> str:
        text: str = self._inner.decode_pieces(pieces) if pieces else ""
        return text
