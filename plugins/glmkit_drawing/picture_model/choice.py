"""Which emoji the picture model learns to draw, and how often it sees each.

A small model has room for about a thousand things. What nobody would wish for as a picture, or
what differs only in a detail, is left out: flags of countries, keycaps and letters, arrows, the
buttons of players, signs, clock faces, families, colours of skin, and the woman and the man of
an emoji that also is a person.
"""

from __future__ import annotations

from .data import Emoji

LEFT_OUT = frozenset(
    "country-flag subdivision-flag keycap alphanum arrow av-symbol punctuation currency gender "
    "math other-symbol transport-sign warning family person-symbol skin-tone hair-style".split()
)
"""Subgroups of the Unicode standard."""
_SIGNS = ("200D-2640", "200D-2642", "200D-27A1")
"""Ends of codes: as a woman, as a man, facing right."""
_COUPLE = ("1F468-", "1F469-", "1F9D1-1F3")
_THINGS = (
    "animal-", "plant-", "food-", "drink", "dishware", "transport-", "sky-", "place-building",
    "sport", "musical-instrument", "heart", "clothing", "event",
)  # fmt: skip
"""Beginnings of the subgroups that are wished for most."""
_SELDOM = 0.2


def is_learned(emoji: Emoji) -> bool:
    """Tell whether the model learns to draw this emoji."""
    if emoji.skin or emoji.subgroup in LEFT_OUT:
        return False
    code = emoji.code
    if any(sign in code for sign in _SIGNS) or code.startswith(_COUPLE):
        return False
    return not (emoji.subgroup == "time" and "1F550" <= code <= "1F567")


def weight(emoji: Emoji) -> float:
    """Return how often the emoji is learned by the denoiser, against a thing that one can see."""
    return 1.0 if emoji.subgroup.startswith(_THINGS) else _SELDOM
