"""Sentences, verbatim, in Chinese and English, and their vectors.

Retrieval judges a passage by its best sentence, and an extractive answer quotes sentences: both
look here, so that each sentence is encoded once.
"""

from __future__ import annotations

import re
import threading
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    import numpy as np

    from glmkit import Encoder, Passage

_REMEMBERED = 2048
_END = re.compile(
    r"[。！？；!?]+[”』」’\"')）]*"  # Chinese ends; ! and ? in any script
    r"|(?<![A-Z])(?<!\b[A-Za-z]\.[A-Za-z])\.+[\"')”]*(?=\s|$)"  # not after an initial, not in 3.5
    r"|\n[ \t]*\n+"
    r"|\n(?=[ \t]*(?:[-*+•|#]|\d+[.)、]))"  # list items, table rows and headings
)
_ABBREVIATION = re.compile(
    r"(?:\b(?:Mr|Mrs|Ms|Dr|Prof|St|Mt|No|vs|etc|approx|Fig|e\.g|i\.e|cf|al|ca|Jr|Sr)\.)$"
)


_LEAST = 12
"""Letters of a sentence that can be judged alone; a Chinese one counts as two."""


def split_sentences(text: str) -> list[str]:
    """Return the sentences of ``text`` in order, each a substring of it without outer blanks.

    A line break ends a sentence only between paragraphs, list items and table rows, because
    documents wrap their lines. Scraps such as "No." or a lone command say nothing that a question
    could be compared with: they stay with the sentence after them, or before them at the end.
    """
    spans: list[tuple[int, int]] = []
    start = 0
    for end in (*_ends(text), len(text)):
        if spans and _weight(text[start:end]) < _LEAST and end == len(text):
            spans[-1] = (spans[-1][0], end)
        elif _weight(text[start:end]) >= _LEAST or end == len(text):
            spans.append((start, end))
            start = end
    pieces = (text[start:end].strip() for start, end in spans)
    return [piece for piece in pieces if any(each.isalnum() for each in piece)]


def _ends(text: str) -> Iterator[int]:
    start = 0
    for end in _END.finditer(text):
        if not _ABBREVIATION.search(text[start : end.end()].rstrip()):
            yield end.end()
            start = end.end()


def _weight(text: str) -> int:
    return sum(2 if each > "\u2e7f" else 1 for each in text if each.isalnum())


class Read(NamedTuple):
    """A passage to be read sentence by sentence."""

    heading: str
    text: str

    @classmethod
    def of(cls, passage: Passage) -> Read:
        """Return a passage with the heading path that its location begins with."""
        return cls(passage.location.rpartition(", ")[0], passage.text)


class SentenceVectors:
    """The sentences of texts with their vectors, remembered for the texts seen last."""

    def __init__(self, encoder: Encoder) -> None:
        self.encoder = encoder
        self._passages: OrderedDict[Read, tuple[list[str], np.ndarray]] = OrderedDict()
        self._questions: OrderedDict[str, np.ndarray] = OrderedDict()
        self._lock = threading.RLock()

    def question(self, text: str) -> np.ndarray:
        """Return the unit vector (D,) of a question."""
        with self._lock:
            if text not in self._questions:
                self._questions[text] = self.encoder.encode([text], kind="query")[0]
                _forget(self._questions)
            return self._questions[text]

    def of(self, passages: Sequence[Read]) -> list[tuple[list[str], np.ndarray]]:
        """Return the sentences and their unit vectors (N, D) of each passage, in one batch.

        A sentence is encoded below its heading: "It is 1,642 metres deep." says little without.
        """
        with self._lock:
            return self._of(passages)

    def _of(self, passages: Sequence[Read]) -> list[tuple[list[str], np.ndarray]]:
        missing = [each for each in dict.fromkeys(passages) if each not in self._passages]
        split = [split_sentences(each.text) or [each.text] for each in missing]
        flat = [
            f"{each.heading}: {sentence}" if each.heading else sentence
            for each, sentences in zip(missing, split, strict=True)
            for sentence in sentences
        ]
        vectors = self.encoder.encode(flat, kind="passage") if flat else None
        at = 0
        for each, sentences in zip(missing, split, strict=True):
            if vectors is not None:
                self._passages[each] = (sentences, vectors[at : at + len(sentences)])
            at += len(sentences)
        found = [self._passages[each] for each in passages]
        _forget(self._passages)
        return found


def _forget(memory: OrderedDict[Any, Any]) -> None:
    while len(memory) > _REMEMBERED:
        memory.popitem(last=False)
