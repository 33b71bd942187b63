"""The vocabulary of GLM-4-9B: byte pairs by rank, in tiktoken's form."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence

import tiktoken

from ..tokenizers import Tokenizer, check_texts

SPECIALS = (
    *("<|endoftext|>", "[MASK]", "[gMASK]", "[sMASK]", "<sop>", "<eop>"),
    *("<|system|>", "<|user|>", "<|assistant|>", "<|observation|>"),
    *("<|begin_of_image|>", "<|end_of_image|>", "<|begin_of_video|>", "<|end_of_video|>"),
)
"""They follow the ranks in this order, where `tokenizer_config.json` does not list them."""

_PATTERN = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)


class Ranks(Tokenizer):
    """The vocabulary in `tokenizer.model` of GLM-4-9B."""

    def __init__(self, ranks: dict[bytes, int], specials: Mapping[str, int]) -> None:
        self._inner = tiktoken.Encoding(
            "glm4", pat_str=_PATTERN, mergeable_ranks=ranks, special_tokens={}
        )
        self._bytes = {number: piece for piece, number in ranks.items()}
        self._names = {number: name for name, number in specials.items()}
        self.specials = dict(specials)
        self.size = max([len(ranks) - 1, *self._names]) + 1
        self.prefix = (self.specials["[gMASK]"], self.specials["<sop>"])
        self.eos_id = self.pad_id = self.specials["<|endoftext|>"]
        longest_first = sorted(map(re.escape, specials), key=len, reverse=True)
        self._typed = re.compile("|".join(longest_first))

    def encode(self, text: str, *, specials: bool = False) -> list[int]:
        """Return the ids of ``text``, without prefix and suffix."""
        check_texts((text,))
        if not specials:
            return self._inner.encode_ordinary(text)
        ids: list[int] = []
        end = 0
        for found in self._typed.finditer(text):
            ids += self.encode(text[end : found.start()]) + [self.specials[found[0]]]
            end = found.end()
        return ids + self.encode(text[end:])

    def encode_batch(self, texts: Sequence[str]) -> list[list[int]]:
        """Return the ids of each text."""
        check_texts(texts)
        return self._inner.encode_ordinary_batch(list(texts))

    def token(self, number: int) -> str:
        """Return the text of an id, each byte that is no text as ``<0xE4>``."""
        if number in self._names:
            return self._names[number]
        if number not in self._bytes:
            raise IndexError(f"no token has the id {number}")
        piece = self._bytes[number]
        try:
            return piece.decode()
        except UnicodeDecodeError:
            return "".join(f"<0x{each:02X}>" for each in piece)

    def spelling(self, number: int) -> bytes | None:
        """Return what an id adds to a text, in UTF-8; None for special tokens."""
        return self._bytes.get(number) if number not in self._names else None

    def raw(self, ids: Iterable[int], *, skip_special: bool = True) -> str:
        """Return the text of ``ids``; special tokens are printed between spaces."""
        parts: list[str] = []
        data = bytearray()
        for number in ids:
            if number not in self._names:
                data += self._bytes.get(number, b"")
            elif not skip_special:
                parts += [data.decode(errors="replace"), self._names[number]]
                data.clear()
        parts.append(data.decode(errors="replace"))
        return " ".join(each for each in parts if each)
