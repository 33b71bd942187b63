"""How likely the tokens of an answer were, by the model's own reckoning."""

from __future__ import annotations

from contextlib import suppress
from typing import NamedTuple

from torch import Tensor

from ..models.spelling import shown
from ..models.tokenizers import Tokenizer
from ..types import TokenLogprob
from .sampling import Sampler

_LEAST = -9999.0
"""Stands for a chance of nothing: JSON has no minus infinity."""


class _Noted(NamedTuple):
    token: int
    odds: float
    best: list[int]
    best_odds: list[float]


class Odds:
    """A sampler that notes how likely what it picks was, before anything bent the scores.

    :param count: how many of the likeliest tokens are noted beside it.
    :raises UsageError: if what the tokens are in bytes is not known.
    """

    def __init__(self, pick: Sampler, tokenizer: Tokenizer, count: int) -> None:
        tokenizer.spelling(0)  # refuse now: what fails as rows are read fails all of them
        self._pick, self._tokenizer, self._count = pick, tokenizer, count
        self._noted: list[_Noted] = []
        self._begun = False
        """Whether a token that says anything has been told of."""

    def __call__(self, scores: Tensor) -> int:
        """Pick a token from the scores (V,) of the row."""
        odds = scores.float().log_softmax(-1)
        token = self._pick(scores)
        best = odds.topk(min(self._count, len(odds)))
        noted = _Noted(token, float(odds[token]), best.indices.tolist(), best.values.tolist())
        self._noted.append(noted)
        return token

    def told(self, start: int, end: int, *, lead: str = "") -> tuple[TokenLogprob, ...]:
        """Return what is known of the tokens from one to another, the last excluded; in order.

        :param lead: what may stand before the text in the first token of it, and is none of it.
        """
        return tuple(self._told(each, lead.encode()) for each in self._noted[start:end])

    def _told(self, noted: _Noted, lead: bytes) -> TokenLogprob:
        lead = b"" if self._begun else lead
        self._begun = self._begun or bool(self._tokenizer.spelling(noted.token))
        best = zip(noted.best, noted.best_odds, strict=True)
        top = tuple(self._named(token, odds, lead) for token, odds in best)
        return self._named(noted.token, noted.odds, lead)._replace(top=top)

    def _named(self, token: int, odds: float, lead: bytes) -> TokenLogprob:
        logprob, spelling = max(odds, _LEAST), self._tokenizer.spelling(token)
        if spelling is None:
            return TokenLogprob(self._name(token), logprob, None)
        spelling = spelling.removeprefix(lead)
        return TokenLogprob(shown(spelling), logprob, spelling)

    def _name(self, token: int) -> str:
        """Return what a token without text is called; not every score need be a token's."""
        if token < self._tokenizer.size:
            with suppress(IndexError):
                return self._tokenizer.token(token)
        return f"<{token}>"
