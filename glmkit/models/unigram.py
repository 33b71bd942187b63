"""SentencePiece unigram tokenizer: normalise character by character, then the likeliest pieces.

A separate small class because the embedded encoder must answer its first query at once: reading
250 000 pieces into the general ``tokenizers`` library takes half a second, this takes a tenth.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from functools import cached_property, lru_cache

from ..errors import CheckpointError

SPACE = "\u2581"
_UNKNOWN_PENALTY = 10.0
"""An unknown character costs this much more than the rarest piece."""
_SURROGATES = range(0xD800, 0xE000)
_CACHED_WORDS = 1 << 16
_CACHED_LENGTH = 24


class Unigram:
    """Turn text into piece ids.

    :param pieces: texts by id, spaces as U+2581.
    :param scores: log probability by id.
    :param normalization: code point to its replacement; other characters stay as they are.
    :param unknown: id of characters that no piece covers; its own text is never matched.
    :raises CheckpointError: if pieces repeat, or pieces and scores differ in number.
    """

    def __init__(
        self,
        pieces: Sequence[str],
        scores: Sequence[float],
        normalization: Mapping[int, str],
        *,
        unknown: int,
    ) -> None:
        self._ids = dict(zip(pieces, range(len(pieces)), strict=True))
        if len(self._ids) != len(scores) or not 0 <= unknown < len(pieces):
            counts = f"{len(self._ids)} different pieces, {len(scores)} scores, unknown {unknown}"
            raise CheckpointError(f"vocabulary does not fit together: {counts}; pull it again")
        del self._ids[pieces[unknown]]
        self._scores = scores
        self._longest = max(map(len, pieces))
        self._unknown = unknown
        self._unknown_score = min(scores) - _UNKNOWN_PENALTY
        # A string may hold lone surrogates and NUL; no table names them.
        self._map = {0: "", **dict.fromkeys(_SURROGATES, " "), **normalization}
        self._cached = lru_cache(maxsize=_CACHED_WORDS)(self._split)

    def normalize(self, text: str) -> str:
        """Return ``text`` as pieces are matched against it: mapped, spaces single and marked."""
        spaced = re.sub(" {2,}", " ", text.translate(self._map))
        return (spaced if spaced.startswith(" ") else " " + spaced).replace(" ", SPACE)

    def encode(self, text: str) -> list[int]:
        """Return the ids of the likeliest pieces of ``text``, without start or end marks."""
        ids: list[int] = []
        # No piece has a space inside, so words are independent of each other.
        for word in self.normalize(text).split(SPACE)[1:]:
            split = self._cached if len(word) < _CACHED_LENGTH else self._split
            ids += split(SPACE + word)
        return ids

    @cached_property
    def _reach(self) -> dict[str, int]:
        """Length of the longest piece by first character."""
        pieces = sorted(self._ids, key=len)
        return dict(zip((piece[0] for piece in pieces), map(len, pieces), strict=True))

    def _split(self, word: str) -> tuple[int, ...]:
        """Find the best path through ``word`` (Viterbi, from left to right)."""
        size = len(word)
        # Worth its making only where there is more than a query to split.
        reach = self._reach if size > _CACHED_LENGTH else {}
        best = [0.0] + [float("-inf")] * size
        step = [(0, self._unknown)] * (size + 1)  # where the best piece ending here starts, its id
        lookup, scores = self._ids.get, self._scores
        for start in range(size):
            base = best[start]
            furthest = start + reach.get(word[start], self._longest)
            for end in range(start + 1, min(furthest, size) + 1):
                piece = lookup(word[start:end])
                if piece is not None and base + scores[piece] > best[end]:
                    best[end] = base + scores[piece]
                    step[end] = (start, piece)
            if base + self._unknown_score > best[start + 1]:
                best[start + 1] = base + self._unknown_score
                step[start + 1] = (start, self._unknown)
        return _walk_back(step)


def _walk_back(step: Sequence[tuple[int, int]]) -> tuple[int, ...]:
    ids = []
    end = len(step) - 1
    while end > 0:
        end, piece = step[end]
        ids.append(piece)
    return tuple(reversed(ids))
