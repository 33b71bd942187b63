"""The chat formats, one for each family of models, both directions.

A format is a list of pieces. A piece is either the name of a special token or plain text, and
plain text is encoded without looking for special tokens in it: nobody can forge a turn.
"""

from __future__ import annotations

from ..tokenizers import Tokenizer
from .base import ChatFormat, Piece, Reader, Special, Verbatim, encode
from .chatml import CHATML
from .roles import CHATGLM3, GLM4, GLM4_0414
from .rounds import CHATGLM, CHATGLM2

FORMATS = {each.name: each for each in (CHATML, CHATGLM, CHATGLM2, CHATGLM3, GLM4, GLM4_0414)}
"""By name; a family's format has the family's name."""

_NEEDS = {
    "chatml": ("<|im_start|>", "<|im_end|>"),
    "chatglm": ("[gMASK]", "<sop>", "<eop>"),
    "chatglm2": ("[gMASK]", "sop"),
    "chatglm3": ("[gMASK]", "sop", "<|user|>", "<|assistant|>"),
    "glm4": ("[gMASK]", "<sop>", "<|user|>", "<|assistant|>"),
}
_NEEDS["glm4-0414"] = _NEEDS["glm4"]


def guess_format(tokenizer: Tokenizer, family: str | None = None) -> ChatFormat | None:
    """Return the format of a family, or the first whose special tokens the vocabulary has.

    :param family: see :mod:`glmkit.models.families`; None where it is unknown.
    """
    if family in FORMATS and _has(tokenizer, family):
        return FORMATS[family]
    guesses = ("chatml", "glm4", "chatglm3")
    return next((FORMATS[each] for each in guesses if _has(tokenizer, each)), None)


def _has(tokenizer: Tokenizer, name: str) -> bool:
    return all(tokenizer.special(each) is not None for each in _NEEDS[name])


__all__ = [
    "CHATGLM",
    "CHATGLM2",
    "CHATGLM3",
    "CHATML",
    "FORMATS",
    "GLM4",
    "GLM4_0414",
    "ChatFormat",
    "Piece",
    "Reader",
    "Special",
    "Verbatim",
    "encode",
    "guess_format",
]
