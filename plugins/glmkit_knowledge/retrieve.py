"""From a question to passages: dense and lexical candidates, fused, then judged on one scale.

1. The encoder's nearest chunks and BM25's best are fused by reciprocal rank.
2. The best of those are read sentence by sentence, described by :class:`~.calibrate.Evidence` and
   ordered by the probability that they answer (:mod:`.calibrate`).
3. A follow-up question is first made to stand on its own (:mod:`.followup`).
"""

from __future__ import annotations

import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from glmkit import Passage, language_of

from . import terms
from .calibrate import WEIGHTS, Background, Evidence, Weights, relative
from .followup import readings
from .sentences import SentenceVectors

if TYPE_CHECKING:
    import numpy as np

    from glmkit import Encoder, Request

ORIGIN = "knowledge"
POOL = 24
"""Candidates taken from each of the two rankings."""
DEPTH = 8
"""Candidates read sentence by sentence, unless more passages are asked for."""
_RANK_OFFSET = 60  # of reciprocal rank fusion: how little the very first ranks stand out


class Chunk(Protocol):
    """What a knowledge base keeps of a document piece."""

    @property
    def id(self) -> int: ...
    @property
    def path(self) -> str: ...
    @property
    def heading(self) -> str: ...
    @property
    def location(self) -> str: ...
    @property
    def text(self) -> str: ...


class Base(Protocol):
    """What retrieval asks of a knowledge base."""

    def dense(self, vector: np.ndarray, k: int) -> Sequence[tuple[int, float]]:
        """Return (id, cosine) of the ``k`` chunks nearest to a unit vector (D,)."""
        ...

    def lexical(self, query: str, k: int) -> Sequence[tuple[int, float]]:
        """Return (id, BM25) of the ``k`` chunks that share most terms; higher is better."""
        ...

    def chunks(self, ids: Sequence[int]) -> Sequence[Chunk]:
        """Return chunks in the order of ``ids``."""
        ...


@dataclass(frozen=True)
class Retrieval:
    """What one question found."""

    question: str
    """As it was asked."""
    reading: str
    """As it was searched: a follow-up question is completed from the conversation."""
    passages: tuple[Passage, ...]
    """Best first, before any threshold."""
    elapsed_ms: float


class Retriever:
    """Finds and judges passages of one knowledge base.

    :param base: where the chunks are.
    :param encoder: the one that the base was indexed with.
    :param home: where the encoder's background is remembered; None measures it anew.
    """

    def __init__(
        self, base: Base, encoder: Encoder, *, home: Path | None = None, weights: Weights = WEIGHTS
    ) -> None:
        self.base = base
        self.sentences = SentenceVectors(encoder)
        self._background = Background.of(encoder, home)
        self._weights = weights

    def retrieve(
        self, question: str, *, top_k: int, history: Sequence[tuple[str, str]] = ()
    ) -> Retrieval:
        """Return the best ``top_k`` passages for ``question``.

        :param history: the turns before, as (question, answer), oldest first.
        """
        started = time.perf_counter()
        found = [(each, self.search(each, top_k)) for each in readings(question, history)]
        reading, passages = max(found, key=lambda pair: pair[1][0].score if pair[1] else 0.0)
        elapsed_ms = (time.perf_counter() - started) * 1000
        return Retrieval(question, reading, tuple(passages), elapsed_ms)

    def search(self, query: str, top_k: int) -> list[Passage]:
        """Return the best ``top_k`` passages for a query that stands on its own, best first."""
        judged = [
            (self._weights.probability(evidence), chunk)
            for chunk, evidence in self.evidence(query, top_k)
        ]
        judged.sort(key=lambda pair: -pair[0])
        return [_passage(chunk, score) for score, chunk in judged[:top_k]]

    def evidence(self, query: str, top_k: int = DEPTH) -> list[tuple[Chunk, Evidence]]:
        """Return the candidates with their features, in the order of the fused ranking."""
        vector = self.sentences.question(query)
        pool = self.base.chunks(self._fused(query, vector))
        read = pool[: max(DEPTH, top_k)]
        rarity = _rarity(terms.content_terms(query), pool)
        zeros = self._background.zeros(vector)
        split = self.sentences.of([chunk.text for chunk in read])
        judge = _Judge(query, vector, rarity, zeros)
        return [
            (chunk, judge.evidence(chunk, sentences, vectors))
            for chunk, (sentences, vectors) in zip(read, split, strict=True)
        ]

    def _fused(self, query: str, vector: np.ndarray) -> list[int]:
        dense = [each for each, _ in self.base.dense(vector, POOL)]
        lexical = [each for each, _ in self.base.lexical(query, POOL)]
        return fuse(dense, lexical)


def fuse(*rankings: Sequence[int]) -> list[int]:
    """Return the ids of several rankings, best first, by reciprocal rank fusion."""
    scores: dict[int, float] = {}
    for ranking in rankings:
        for rank, each in enumerate(ranking):
            scores[each] = scores.get(each, 0.0) + 1 / (_RANK_OFFSET + rank)
    return sorted(scores, key=lambda each: -scores[each])


def _rarity(wanted: Sequence[str], pool: Sequence[Chunk]) -> dict[str, float]:
    """Return the weight of each term: the fewer candidates have it, the more it tells."""
    texts = [_full(chunk) for chunk in pool]
    return {
        term: math.log(
            (len(texts) + 1) / (sum(terms.coverage([term], text) for text in texts) + 0.5)
        )
        for term in wanted
    }


def _full(chunk: Chunk) -> str:
    return f"{chunk.path}\n{chunk.heading}\n{chunk.text}"


def _passage(chunk: Chunk, score: float) -> Passage:
    return Passage(chunk.text, chunk.path, chunk.location, round(score, 4), ORIGIN)


@dataclass(frozen=True)
class _Judge:
    """Describes candidates of one question."""

    query: str
    vector: np.ndarray
    rarity: Mapping[str, float]
    zeros: Mapping[str, float]

    def evidence(self, chunk: Chunk, sentences: Sequence[str], vectors: np.ndarray) -> Evidence:
        language = language_of(chunk.text)
        zero = self.zeros[language]
        cosines = vectors @ self.vector
        order = cosines.argsort()[::-1]
        best = float(cosines[order[0]])
        crossing = language != language_of(self.query)
        text = _full(chunk)
        kind = terms.answer_kind(self.query)
        held = any(terms.holds_kind(kind, sentences[at]) for at in order[:2])
        return Evidence(
            sentence=relative(best, zero),
            focus=(best - float(cosines.mean())) / max(1e-6, 1 - zero),
            coverage=0.0 if crossing else self._coverage(text),
            crossing=float(crossing),
            codes=terms.missing_tokens(terms.hard_tokens(self.query), text),
            kind=float(not held),
        )

    def _coverage(self, text: str) -> float:
        whole = sum(self.rarity.values())
        if not whole:
            return 1.0
        return sum(self.rarity[term] * terms.coverage([term], text) for term in self.rarity) / whole


@dataclass
class KnowledgeQuery:
    """What a turn asks of this plugin: goes into ``settings["knowledge"]`` of a request.

    It belongs to one conversation, and remembers what the last turn found.
    """

    retriever: Retriever
    top_k: int
    threshold: float
    log_unanswered: Path | None = None
    last: Retrieval | None = field(default=None, compare=False)

    def passages(self, request: Request) -> list[Passage]:
        """Return the passages that pass the threshold, best first."""
        self.last = self.retriever.retrieve(
            request.question, top_k=self.top_k, history=turns(request)
        )
        return [each for each in self.last.passages if each.score >= self.threshold]


def turns(request: Request) -> list[tuple[str, str]]:
    """Return the finished turns of a request as (question, answer), oldest first."""
    found: list[tuple[str, str]] = []
    for message in request.messages[:-1]:
        if message.role == "user":
            found.append((message.content, ""))
        elif message.role == "assistant" and found:
            found[-1] = (found[-1][0], message.content)
    return found
