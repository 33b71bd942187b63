"""Citations: which passage each sentence of a generated answer rests on.

The model writes, this module marks: after each finished sentence it adds ``[n]`` where passage n
shares enough of the sentence's terms and all of its numbers. It decides sentence by sentence as the
text streams, and only on finished sentences, so a stream, a whole reply and a batch row carry the
same marks.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from glmkit import Chunk, Message, Passage, Reply, StreamedModel

from . import terms

if TYPE_CHECKING:
    from glmkit import ChatModel, GenerationOptions, MessageLike

_ENOUGH = 0.5
"""Least share of a sentence's terms that a passage must hold to be cited for it."""
_MARK = re.compile(r"\[\d+\]")
_DIGITS = re.compile(r"\d+(?:[.,]\d+)*")
# An end is final only when the character after it is known: "3." may go on as "3.5".
_END = re.compile(r"(?:[。！？；]+|[.!?]+)[”』」’\"')）]*(?=[^。！？；.!?”』」’\"')）])|\n")
_LATIN_END = re.compile(r"[.!?][\"')）]*$")


def mark(source: int) -> str:
    """Return the citation of the passage at index ``source`` (from 0)."""
    return f"[{source + 1}]"


class Citer:
    """Adds citations to a text that arrives in pieces.

    :param passages: what may be cited, in the order of the numbers.
    """

    def __init__(self, passages: Sequence[Passage]) -> None:
        self._passages = passages
        self._open = ""
        self._shown = 0

    def feed(self, text: str) -> str:
        """Take the next piece of the answer and return what can be shown of it, with marks."""
        self._open += text
        shown: list[str] = []
        while (end := self._end()) is not None:
            shown += [self._open[self._shown : end], self._mark(self._open[:end])]
            self._open = self._open[end:]
            self._shown = 0
        safe = self._safe()
        shown.append(self._open[self._shown : safe])
        self._shown = max(self._shown, safe)
        return "".join(shown)

    def close(self) -> str:
        """Return what was held back, and the mark of the last sentence."""
        body = self._open.rstrip()
        rest = self._open[self._shown :]
        at = max(0, len(body) - self._shown)
        return rest[:at] + self._mark(body) + rest[at:]

    def _end(self) -> int | None:
        """Return where the first sentence ends, None while it is open."""
        for match in _END.finditer(self._open):
            piece = self._open[: match.end()]
            if match.group() == "\n":
                return match.start() if match.start() else None
            follows = self._open[match.end()]
            if _LATIN_END.search(piece) and not follows.isspace():
                continue
            return match.end()
        return None

    def _safe(self) -> int:
        """Return how much of the open sentence may be shown: all but what might be its end."""
        return len(self._open.rstrip("。！？；.!?”』」’\"')） \t\n"))

    def _mark(self, sentence: str) -> str:
        if not self._passages or _MARK.search(sentence):
            return ""
        shares = [support(sentence, passage) for passage in self._passages]
        best = max(shares)
        return f" {mark(shares.index(best))}" if best >= _ENOUGH else ""


def support(sentence: str, passage: Passage) -> float:
    """Return the share of the sentence's terms that the passage holds, 0..1.

    0 if a number of the sentence is missing there: a wrong number must not look backed.
    """
    wanted = terms.content_terms(sentence)
    text = f"{passage.location}\n{passage.text}"
    if not wanted or not set(_DIGITS.findall(sentence)) <= set(_DIGITS.findall(text)):
        return 0.0
    return terms.coverage(wanted, text)


class CitingModel(StreamedModel):
    """A chat model whose answers cite the passages that they were given."""

    def __init__(self, model: ChatModel) -> None:
        self._model = model
        self.name = model.name
        self.languages = model.languages

    def stream(
        self, messages: Sequence[MessageLike], options: GenerationOptions | None = None
    ) -> Iterator[Chunk]:
        """Yield the model's answer with citations."""
        citer = Citer(Message.of(messages[-1]).passages)
        for chunk in self._model.stream(messages, options):
            text = citer.feed(chunk.text)
            if chunk.finish_reason is not None:
                text += citer.close()
            if text or chunk.finish_reason is not None:
                yield replace(chunk, text=text)

    def batch(
        self,
        conversations: Iterable[Sequence[MessageLike]],
        options: GenerationOptions | None = None,
    ) -> Iterator[Reply]:
        """Yield one reply per conversation, in their order."""
        asked = [list(conversation) for conversation in conversations]
        for conversation, reply in zip(asked, self._model.batch(asked, options), strict=True):
            citer = Citer(Message.of(conversation[-1]).passages)
            yield replace(reply, text=citer.feed(reply.text) + citer.close())
