"""A vocabulary in Hugging Face's `tokenizer.json`, which describes itself."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import cached_property
from typing import Any

import tokenizers

from ..spelling import of_byte_level, of_piece
from ..tokenizers import Tokenizer, check_texts

CONTROL = frozenset(
    (
        *("[MASK]", "[gMASK]", "[sMASK]", "<sop>", "<eop>"),
        *("<|system|>", "<|user|>", "<|assistant|>", "<|observation|>", "<|endoftext|>"),
        *("<|im_start|>", "<|im_end|>"),
    )
)
"""Tokens that steer a model, also where a file does not call them special."""

_ALIASES = {"sop": "<sop>", "eop": "<eop>", "<eos>": "</s>", "<bos>": "<s>", "<pad>": "<unk>"}
"""What ChatGLM2 and ChatGLM3 call their tokens -> what converted files do."""


def speller(inner: tokenizers.Tokenizer) -> Callable[[str], bytes]:
    """Return what turns the names of a vocabulary's tokens into the bytes that they stand for."""
    state = inner.decoder.__getstate__() if inner.decoder is not None else b""
    return of_byte_level if b"ByteLevel" in state else of_piece


class Described(Tokenizer):
    """The vocabulary of a `tokenizer.json`.

    :param settings: the folder's `tokenizer_config.json`, for what the file itself does not say.
    """

    def __init__(
        self, inner: tokenizers.Tokenizer, settings: Mapping[str, Any] | None = None
    ) -> None:
        # What users write is text: "<|im_end|>" typed by a person must not end a turn.
        inner.encode_special_tokens = True
        inner.no_truncation()
        inner.no_padding()
        added = inner.get_added_tokens_decoder()
        plain = [each for each in added.values() if each.content in CONTROL and not each.special]
        inner.add_special_tokens(
            [tokenizers.AddedToken(each.content, special=True) for each in plain]
        )
        self._inner = inner
        self._added = inner.get_added_tokens_decoder()
        self._spell = speller(inner)
        self.specials = {each.content: number for number, each in added.items()}
        self.size = inner.get_vocab_size(with_added_tokens=True)
        steered = self._present("[gMASK]", "<sop>")
        self.prefix = steered if len(steered) == 2 else ()
        said = settings or {}
        self.eos_id = self._named(said.get("eos_token"))
        self.bos_id = self._named(said.get("bos_token"))
        pad = self._named(said.get("pad_token"))
        self.pad_id = pad if pad is not None else self.eos_id or 0

    def encode(self, text: str, *, specials: bool = False) -> list[int]:
        """Return the ids of ``text``, without prefix and suffix."""
        check_texts((text,))
        inner = self._parsing if specials else self._inner
        return inner.encode(text, add_special_tokens=False).ids

    def encode_batch(self, texts: Sequence[str]) -> list[list[int]]:
        """Return the ids of each text."""
        check_texts(texts)
        return [
            each.ids for each in self._inner.encode_batch(list(texts), add_special_tokens=False)
        ]

    def special(self, name: str) -> int | None:
        """Return the id of the special token ``name``; see :data:`_ALIASES`."""
        found = self._inner.token_to_id(name)
        return found if found is not None else self._inner.token_to_id(_ALIASES.get(name, name))

    def token(self, number: int) -> str:
        """Return what the vocabulary calls an id."""
        name = self._inner.id_to_token(number)
        if name is None:
            raise IndexError(f"no token has the id {number}")
        return name

    def spelling(self, number: int) -> bytes | None:
        """Return what an id adds to a text, in UTF-8; None for special tokens."""
        added = self._added.get(number)
        if added is not None:
            return None if added.special else added.content.encode()
        name = self._inner.id_to_token(number)
        return None if name is None else self._spell(name)

    def raw(self, ids: Iterable[int], *, skip_special: bool = True) -> str:
        """Return the text of ``ids``."""
        return self._inner.decode(list(ids), skip_special_tokens=skip_special)

    @cached_property
    def _parsing(self) -> tokenizers.Tokenizer:
        """A copy that reads special tokens in text: the switch belongs to the whole object."""
        copy = tokenizers.Tokenizer.from_str(self._inner.to_str())
        copy.encode_special_tokens = False
        return copy

    def _present(self, *names: str) -> tuple[int, ...]:
        found = [self.special(each) for each in names]
        return tuple(each for each in found if each is not None)

    def _named(self, said: object) -> int | None:
        name = said.get("content") if isinstance(said, Mapping) else said
        return self.special(name) if isinstance(name, str) else None
