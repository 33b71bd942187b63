"""A knowledge base in memory, and an encoder that needs no model: for tests of retrieval."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from glmkit import Encoder
from glmkit_knowledge import terms


@dataclass(frozen=True)
class Piece:
    id: int
    path: str
    text: str
    heading: str = ""
    location: str = "line 1"


class MemoryBase:
    """What :class:`glmkit_knowledge.retrieve.Base` asks for, by brute force."""

    def __init__(self, pieces: Sequence[Piece], encoder: Encoder) -> None:
        self.encoder = encoder
        self._pieces = {piece.id: piece for piece in pieces}
        texts = [f"{each.heading}\n{each.text}".strip() for each in pieces]
        rows = encoder.encode(texts, kind="passage")
        self._vectors = dict(zip(self._pieces, rows, strict=True))

    @classmethod
    def of(cls, documents: dict[str, str], encoder: Encoder) -> MemoryBase:
        """Return a base with one chunk per paragraph of each document."""
        pieces: list[Piece] = []
        for path, text in documents.items():
            for line, paragraph in enumerate(text.split("\n\n"), 1):
                pieces.append(Piece(len(pieces) + 1, path, paragraph, location=f"line {line}"))
        return cls(pieces, encoder)

    def without(self, ids: set[int]) -> MemoryBase:
        """Return the same base without some pieces."""
        other = MemoryBase([], self.encoder)
        other._pieces = {key: each for key, each in self._pieces.items() if key not in ids}
        other._vectors = {key: each for key, each in self._vectors.items() if key not in ids}
        return other

    def __len__(self) -> int:
        return len(self._pieces)

    def dense(self, vector: np.ndarray, k: int) -> list[tuple[int, float]]:
        found = [(key, float(row @ vector)) for key, row in self._vectors.items()]
        return sorted(found, key=lambda pair: -pair[1])[:k]

    def lexical(self, query: str, k: int) -> list[tuple[int, float]]:
        wanted = terms.content_terms(query)
        scores = dict.fromkeys(self._pieces, 0.0)
        for term in wanted:
            holders = [
                key for key, each in self._pieces.items() if terms.coverage([term], each.text)
            ]
            for key in holders:
                scores[key] += math.log((len(self._pieces) + 1) / (len(holders) + 0.5))
        found = [(key, score) for key, score in scores.items() if score > 0]
        return sorted(found, key=lambda pair: -pair[1])[:k]

    def chunks(self, ids: Sequence[int]) -> list[Piece]:
        return [self._pieces[each] for each in ids if each in self._pieces]

    def vectors(self, ids: Sequence[int]) -> np.ndarray:
        rows = [self._vectors[each] for each in ids]
        return np.stack(rows) if rows else np.zeros((0, self.encoder.dimensions), np.float32)
