"""From a question to passages: dense and lexical candidates, fused, then judged on one scale.

1. The encoder's nearest chunks, in either language, and BM25's best are pooled and ordered by
   cosine and shared terms.
2. The best of those are read sentence by sentence, described by :class:`~.calibrate.Evidence` and
   ordered by the probability that they answer (:mod:`.calibrate`).
3. A follow-up question is first made to stand on its own (:mod:`.followup`).
"""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from glmkit import Passage, language_of

from . import terms
from .calibrate import SAMPLE, WEIGHTS, Background, Evidence, Weights, relative
from .followup import readings
from .sentences import Read, SentenceVectors

if TYPE_CHECKING:
    import numpy as np

    from glmkit import Encoder, Request

ORIGIN = "knowledge"
POOL = 24
"""Candidates taken from each of the two rankings."""
DEPTH = 6
"""Candidates of each language read sentence by sentence, unless more passages are asked for."""
_COMMON = 0.4  # share of the candidates from which a name stops telling them apart
_COVERAGE = 0.35  # what sharing all terms is worth in the first guess, on the cosine's scale


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

    def __len__(self) -> int:
        """Return the number of chunks."""
        ...

    def dense(self, vector: np.ndarray, k: int) -> Sequence[tuple[int, float]]:
        """Return (id, cosine) of the ``k`` chunks nearest to a unit vector (D,)."""
        ...

    def lexical(self, query: str, k: int) -> Sequence[tuple[int, float]]:
        """Return (id, BM25) of the ``k`` chunks that share most terms; higher is better."""
        ...

    def chunks(self, ids: Sequence[int]) -> Sequence[Chunk]:
        """Return chunks in the order of ``ids``, without those that are gone."""
        ...

    def vectors(self, ids: Sequence[int]) -> np.ndarray:
        """Return unit vectors (N, D) in the order of ``ids``."""
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
        everyday = Background.of(encoder, home)
        self._background = everyday.against(_sample(base, everyday))
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
        """Return the most promising candidates with their features."""
        judge = self._judge(query)
        chunks = judge.most_promising(max(DEPTH, top_k))
        split = self.sentences.of([Read.of(_passage(chunk)) for chunk in chunks])
        return judge.evidence(chunks, split)

    def _judge(self, query: str) -> _Judge:
        vector = self.sentences.question(query)
        dense = self.base.dense(self._background.neutral(vector), POOL)
        lexical = self.base.lexical(query, POOL)
        pool = self.base.chunks(list(dict.fromkeys(each for each, _ in (*dense, *lexical))))
        telling = terms.without_common(query, [_full(chunk) for chunk in pool], share=_COMMON)
        vector = self.sentences.question(telling)
        cosines = self.base.vectors([chunk.id for chunk in pool]) @ vector
        return _Judge(
            query,
            vector,
            pool,
            rarity=_rarity(terms.content_terms(query), pool),
            zeros=self._background.zeros(vector),
            cosines={chunk.id: float(each) for chunk, each in zip(pool, cosines, strict=True)},
        )


def _sample(base: Base, everyday: Background) -> dict[str, np.ndarray]:
    """Return vectors (N, D) of a spread of chunks, by language: those nearest to everyday text.

    That is all of a small base, and what nobody asks about of a large one.
    """
    each = max(1, SAMPLE // 32) if len(base) > SAMPLE else SAMPLE
    rows = list(everyday.rows())[: 1 if each == SAMPLE else None]
    ids = list(dict.fromkeys(found for row in rows for found, _ in base.dense(row, each)))
    chunks = base.chunks(ids)
    vectors = base.vectors([chunk.id for chunk in chunks])
    languages = [language_of(chunk.text) for chunk in chunks]
    return {
        name: vectors[[at for at, language in enumerate(languages) if language == name]]
        for name in set(languages)
    }


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


def _passage(chunk: Chunk, score: float = 0.0) -> Passage:
    return Passage(chunk.text, chunk.path, chunk.location, round(score, 4), ORIGIN)


@dataclass(frozen=True)
class _Judge:
    """Describes the candidates of one question."""

    query: str
    vector: np.ndarray
    pool: Sequence[Chunk]
    rarity: Mapping[str, float]
    zeros: Mapping[str, float]
    cosines: Mapping[int, float]

    def most_promising(self, count: int) -> list[Chunk]:
        """Return the ``count`` candidates of each language that look best at first sight.

        Languages do not compete here: what is shared with a passage in another language cannot be
        counted in terms.
        """
        ranked = sorted(self.pool, key=lambda chunk: -self._promise(chunk))
        near = [chunk for chunk in ranked if not self._crosses(chunk)]
        far = [chunk for chunk in ranked if self._crosses(chunk)]
        return near[:count] + far[:count]

    def _promise(self, chunk: Chunk) -> float:
        return self._passage(chunk) + _COVERAGE * self._coverage(chunk)

    def evidence(
        self, chunks: Sequence[Chunk], split: Sequence[tuple[list[str], np.ndarray]]
    ) -> list[tuple[Chunk, Evidence]]:
        """Return the features of candidates, given their sentences with vectors."""
        best = [self._sentence(chunk, rows) for chunk, (_, rows) in zip(chunks, split, strict=True)]
        crosses = [self._crosses(chunk) for chunk in chunks]
        found: list[tuple[Chunk, Evidence]] = []
        for at, chunk in enumerate(chunks):
            kin = [best[i] for i, each in enumerate(crosses) if each == crosses[at] and i != at]
            evidence = Evidence(
                passage=self._passage(chunk),
                sentence=best[at],
                margin=best[at] - statistics.median(kin) if kin else 0.0,
                coverage=self._coverage(chunk),
                crossing=float(crosses[at]),
                codes=terms.missing_tokens(terms.hard_tokens(self.query), _full(chunk)),
            )
            found.append((chunk, evidence))
        return found

    def _sentence(self, chunk: Chunk, rows: np.ndarray) -> float:
        return self._relative(chunk, float((rows @ self.vector).max()))

    def _relative(self, chunk: Chunk, cosine: float) -> float:
        return relative(cosine, self.zeros[language_of(chunk.text)])

    def _passage(self, chunk: Chunk) -> float:
        return self._relative(chunk, self.cosines[chunk.id])

    def _crosses(self, chunk: Chunk) -> bool:
        return language_of(chunk.text) != language_of(self.query)

    def _coverage(self, chunk: Chunk) -> float:
        if self._crosses(chunk):
            return 0.0
        whole = sum(self.rarity.values())
        text = _full(chunk)
        found = sum(self.rarity[term] * terms.coverage([term], text) for term in self.rarity)
        return found / whole if whole else 1.0


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
