"""How likely tokens were, as OpenAI's API writes it: one way for chats, an older one for texts."""

from __future__ import annotations

import codecs
from collections.abc import Sequence
from typing import Any

from glmkit import TokenLogprob

Json = dict[str, Any]


def chat_odds(odds: Sequence[TokenLogprob]) -> Json | None:
    """Return the ``logprobs`` of a chat; None where none were asked for."""
    if not odds:
        return None
    told = [_told(each) | {"top_logprobs": [*map(_told, each.top)]} for each in odds]
    return {"content": told, "refusal": None}


def _told(each: TokenLogprob) -> Json:
    spelt = None if each.bytes is None else [*each.bytes]
    return {"token": each.token, "logprob": each.logprob, "bytes": spelt}


class TextOdds:
    """Writes the ``logprobs`` of one text, which say where in it each token begins."""

    def __init__(self) -> None:
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")
        self._at = 0

    def told(self, odds: Sequence[TokenLogprob]) -> Json:
        """Return what is told of the next tokens."""
        return {
            "tokens": [each.token for each in odds],
            "token_logprobs": [each.logprob for each in odds],
            "top_logprobs": [
                {other.token: other.logprob for other in (*each.top, each)} for each in odds
            ],
            "text_offset": [self._place(each) for each in odds],
        }

    def _place(self, each: TokenLogprob) -> int:
        at = self._at
        self._at += len(self._decoder.decode(each.bytes or b""))
        return at
