"""Text to token ids and back, behind one small class."""

from __future__ import annotations

from pathlib import Path

import tokenizers

from ..errors import CheckpointError


class Tokenizer:
    """The vocabulary of a `tokenizer.json`."""

    def __init__(self, inner: tokenizers.Tokenizer) -> None:
        # What users write is text: "<|im_end|>" typed by a person must not end a turn.
        inner.encode_special_tokens = True
        inner.no_truncation()
        inner.no_padding()
        self._inner = inner

    @classmethod
    def open(cls, folder: Path) -> Tokenizer | None:
        """Return the folder's vocabulary, or None where it has none that glmkit reads.

        :raises CheckpointError: if the file is damaged.
        """
        file = folder / "tokenizer.json"
        if not file.is_file():
            return None
        try:
            return cls(tokenizers.Tokenizer.from_buffer(file.read_bytes()))
        except Exception as error:  # noqa: BLE001 - the library raises bare Exception
            raise CheckpointError(f"{file} is damaged ({error}); fetch it again") from error

    @property
    def size(self) -> int:
        """How many ids there are, special ones included."""
        return self._inner.get_vocab_size(with_added_tokens=True)

    def encode(self, text: str) -> list[int]:
        """Return the ids of ``text``; names of special tokens in it stay text."""
        return self._inner.encode(text, add_special_tokens=False).ids

    def special(self, name: str) -> int | None:
        """Return the id of the special token ``name``."""
        return self._inner.token_to_id(name)

    def decode(self, ids: list[int]) -> str:
        """Return the text of ``ids`` without special tokens."""
        return self._inner.decode(ids, skip_special_tokens=True)


class Detokenizer:
    """Turns one row's tokens into text as they come, never showing half a character."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        self._shown: list[int] = []
        """The latest tokens already shown: some vocabularies space a token by its neighbour."""
        self._waiting: list[int] = []

    def push(self, token: int) -> str:
        """Take a token; return the text that is complete by now."""
        self._waiting.append(token)
        piece = self._piece()
        if not piece or piece.endswith("\ufffd"):
            return ""
        self._shown, self._waiting = self._waiting, []
        return piece

    def finish(self) -> str:
        """Return the complete characters that are still waiting."""
        return self._piece().rstrip("\ufffd") if self._waiting else ""

    def _piece(self) -> str:
        before = self._tokenizer.decode(self._shown)
        return self._tokenizer.decode(self._shown + self._waiting)[len(before) :]
