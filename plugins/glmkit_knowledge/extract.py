"""Answer with the documents' own sentences: no model, nothing invented.

For models that do not speak the question's language, and for whoever wants the wording of the
source. Works across languages, because the encoder does.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from glmkit import Chunk, Message, Passage, StreamedModel, Usage, language_of

from . import terms
from .cite import mark
from .followup import leans_back
from .sentences import Read, SentenceVectors

if TYPE_CHECKING:
    import numpy as np

    from glmkit import GenerationOptions, MessageLike

_READ = 3  # passages quoted from, the best ones
_MOST = 3  # sentences of an answer
_COVERAGE = 0.06  # what sharing all terms is worth, in cosine; languages must agree
_KIND = 0.04  # what holding the asked number or time is worth
_PASSAGE = 0.10  # what the passage's own score is worth
_NEAR = 0.02  # sentences this close to the best one are quoted too
_CLAUSE = "；"
_OPEN = "；，、;, "  # what a list item ends with when others follow
_SAME = 0.97  # cosine from which two sentences say the same


@dataclass(frozen=True)
class Quote:
    """A sentence chosen as (part of) the answer."""

    text: str
    """Verbatim from the passage."""
    source: int
    """Which passage, counting from 0."""
    at: int
    """Which sentence of the passage, counting from 0."""
    score: float


class ExtractiveModel(StreamedModel):
    """A chat model that quotes the passages of the last message.

    :param sentences: shared with retrieval, so that nothing is encoded twice.
    """

    def __init__(self, sentences: SentenceVectors) -> None:
        self.name = "extract"
        self.languages: frozenset[str] | None = None
        self._sentences = sentences

    def stream(
        self, messages: Sequence[MessageLike], options: GenerationOptions | None = None
    ) -> Iterator[Chunk]:
        """Yield the sentences that answer, best first, each with its citation.

        A follow-up question is completed with the user's question before it.
        """
        conversation = [Message.of(each) for each in messages]
        question = conversation[-1].content
        if leans_back(question):
            asked = [each.content for each in conversation[:-1] if each.role == "user"]
            question = " ".join([*asked[-1:], question])
        yield from self.quote(question, conversation[-1].passages)

    def quote(self, question: str, passages: Sequence[Passage]) -> Iterator[Chunk]:
        """Yield the sentences of ``passages`` that answer a question that stands on its own."""
        gap = ""
        for quote in choose(question, passages, self._sentences):
            yield Chunk(f"{gap}{quote.text.rstrip(_OPEN)} {mark(quote.source)}")
            gap = "\n"
        yield Chunk("", "stop", Usage())


def choose(question: str, passages: Sequence[Passage], vectors: SentenceVectors) -> list[Quote]:
    """Return one to three quotes that answer ``question``, in reading order per passage.

    A sentence scores by its cosine with the question, the terms it shares, whether it holds the
    number or time asked for, and the score of its passage. One that starts by pointing back ("It
    is 6,650 km long.") brings the sentence before it along.
    """
    read = vectors.of([Read.of(passage) for passage in passages[:_READ]])
    asked = vectors.question(question)
    quotes = [
        Quote(text, source, at, _worth(question, text, float(vector @ asked), passages[source]))
        for source, (sentences, rows) in enumerate(read)
        for at, (text, vector) in enumerate(zip(sentences, rows, strict=True))
    ]
    quotes.sort(key=lambda quote: -quote.score)
    chosen: list[Quote] = []
    for quote in quotes:
        if chosen and (len(chosen) == _MOST or quote.score < chosen[0].score - _NEAR):
            break
        if not any(_alike(quote, other, read) for other in chosen):
            chosen.append(quote)
    found = _with_antecedents(chosen, read)[:_MOST]
    whole = [_whole(quote, read[quote.source][0], passages[quote.source].text) for quote in found]
    return list({(quote.source, quote.text): quote for quote in reversed(whole)}.values())[::-1]


def _whole(quote: Quote, sentences: Sequence[str], text: str) -> Quote:
    """Return a quote with the other clauses of its sentence, where semicolons divide it."""
    start, end = quote.at, quote.at + 1
    while start and sentences[start - 1].endswith(_CLAUSE):
        start -= 1
    while end < len(sentences) and sentences[end - 1].endswith(_CLAUSE):
        end += 1
    together = "".join(sentences[start:end])
    # The items of a list end so too, and are not next to each other in the text.
    return replace(quote, text=together) if together in text else quote


def _worth(question: str, sentence: str, cosine: float, passage: Passage) -> float:
    shared = 0.0
    if language_of(question) == language_of(sentence):
        wanted = terms.content_terms(question)
        # The heading often names what a sentence calls "it": half the worth is for both together.
        headed = f"{Read.of(passage).heading}\n{sentence}"
        shared = (terms.coverage(wanted, sentence) + terms.coverage(wanted, headed)) / 2
    kind = terms.answer_kind(question)
    held = kind != "none" and terms.holds_kind(kind, sentence)
    return cosine + _COVERAGE * shared + _KIND * held + _PASSAGE * passage.score


def _alike(one: Quote, other: Quote, read: Sequence[tuple[list[str], np.ndarray]]) -> bool:
    if one.text == other.text:
        return True
    vectors = [read[quote.source][1][quote.at] for quote in (one, other)]
    return float(vectors[0] @ vectors[1]) >= _SAME


def _with_antecedents(
    chosen: Sequence[Quote], read: Sequence[tuple[list[str], np.ndarray]]
) -> list[Quote]:
    found: list[Quote] = []
    taken: set[tuple[int, int]] = set()
    for quote in chosen:
        before = (quote.source, quote.at - 1)
        if quote.at and before not in taken and terms.points_back(quote.text):
            taken.add(before)
            found.append(Quote(read[quote.source][0][quote.at - 1], *before, quote.score))
        if (quote.source, quote.at) not in taken:
            taken.add((quote.source, quote.at))
            found.append(quote)
    return found
