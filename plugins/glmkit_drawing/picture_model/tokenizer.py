"""The picture model's tokenizer: CLIP's kind, English in pieces of words, Chinese in characters.

CLIP cuts a text into words and a word into merged bytes. Merges learnt from English make its
pieces of words; for Chinese, the only merges are those that join the bytes of one character, so
that a compound never hides the characters in it. A character is two tokens: inside a run of
letters, and at its end.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from transformers import CLIPTokenizer

BEGIN, END = "<|startoftext|>", "<|endoftext|>"
_END_OF_WORD = "</w>"

Merge = tuple[str, str]


def train_tokenizer(texts: Iterable[str], *, pieces: int, tokens: int) -> CLIPTokenizer:
    """Return a tokenizer for texts in English and Chinese.

    :param pieces: how many pieces of English words it learns, the 512 single bytes included.
    :param tokens: the longest prompt, with the two tokens around it.
    """
    from tokenizers.pre_tokenizers import ByteLevel
    from transformers import CLIPTokenizer

    texts = list(texts)
    merges = _english([text for text in texts if text.isascii()], pieces)
    characters = sorted({letter for text in texts for letter in text if letter > "\u2e7f"})
    merges += _characters(characters)
    letters = sorted(ByteLevel.alphabet())
    names = [*letters, *(letter + _END_OF_WORD for letter in letters)]
    names += dict.fromkeys(left + right for left, right in merges)
    names += [BEGIN, END]
    vocabulary = {name: at for at, name in enumerate(names)}
    # transformers' annotation says lists of strings; pairs are what the tokenizer below takes.
    return CLIPTokenizer(
        vocab=vocabulary,
        merges=merges,  # type: ignore[arg-type]
        model_max_length=tokens,
    )


def _english(texts: list[str], pieces: int) -> list[Merge]:
    """Return the merges of byte-pair encoding."""
    from tokenizers import Tokenizer, models, pre_tokenizers, trainers
    from transformers import CLIPTokenizer

    like_clip = CLIPTokenizer().backend_tokenizer
    learner = Tokenizer(models.BPE(end_of_word_suffix=_END_OF_WORD))
    learner.normalizer = like_clip.normalizer
    learner.pre_tokenizer = like_clip.pre_tokenizer
    trainer = trainers.BpeTrainer(
        vocab_size=pieces,
        min_frequency=2,
        end_of_word_suffix=_END_OF_WORD,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    learner.train_from_iterator(texts, trainer)
    found = json.loads(learner.to_str())["model"]["merges"]
    return [(left, right) for left, right in found]


def _characters(characters: Iterable[str]) -> list[Merge]:
    """Return the merges that join the bytes of each character, inside a run and at its end."""
    merges: dict[Merge, None] = {}
    for character in characters:
        *first, last = list(_as_letters(character))
        whole = first[0]
        for letter in first[1:]:
            merges[whole, letter] = None
            whole += letter
        merges[whole, last] = None
        merges[whole, last + _END_OF_WORD] = None
    return list(merges)


def _as_letters(text: str) -> str:
    """Return the bytes of a text as the letters that a byte-level tokenizer writes for them."""
    from tokenizers.pre_tokenizers import ByteLevel

    pieces = ByteLevel(add_prefix_space=False, use_regex=False).pre_tokenize_str(text)
    return "".join(piece for piece, _ in pieces)
