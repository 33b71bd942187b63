"""Changing a text while it grows: what later text may still change is held back.

The stages here are used on whole texts and on streams alike, so that both always agree.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from typing import Protocol


class Stage(Protocol):
    """Takes a text in pieces and gives it back changed, as soon as each part is settled."""

    def push(self, text: str) -> str:
        """Take more text; return what is settled by now."""
        ...

    def finish(self) -> str:
        """Return what was held back; there will be no more text."""
        ...


class Settling:
    """Changes a text by a local rule.

    :param change: returns its argument changed.
    :param unsettled: matches the longest end of a text that more text could still change; it must
        cut where nothing before it depends on anything after it.
    :param lookback: how many settled characters ``change`` has to see before the ones it changes;
        it must give them back in the same number.
    """

    def __init__(
        self, change: Callable[[str], str], unsettled: re.Pattern[str], lookback: int = 0
    ) -> None:
        self._change = change
        self._unsettled = unsettled
        self._lookback = lookback
        self._before = ""
        self._held = ""

    def push(self, text: str) -> str:
        """Take more text; return what is settled by now."""
        whole = self._before + self._held + text
        start = len(self._before)
        found = self._unsettled.search(whole, start)
        cut = found.start() if found else len(whole)
        self._held = whole[cut:]
        return self._settle(whole[start:cut])

    def finish(self) -> str:
        """Return what was held back, changed."""
        held, self._held = self._held, ""
        return self._settle(held)

    def _settle(self, text: str) -> str:
        if not text:
            return ""
        changed = self._change(self._before + text)[len(self._before) :]
        if self._lookback:
            self._before = (self._before + text)[-self._lookback :]
        return changed


class Stripping:
    """Drops white space at both ends of a text."""

    def __init__(self) -> None:
        self._begun = False
        self._held = ""

    def push(self, text: str) -> str:
        """Take more text; return it up to its last character that is no white space."""
        whole = self._held + text if self._begun else text.lstrip()
        shown = whole.rstrip()
        self._begun = self._begun or bool(shown)
        self._held = whole[len(shown) :]
        return shown

    def finish(self) -> str:
        """Return nothing: what was held back is white space at the end."""
        self._held = ""
        return ""


class Chain:
    """Several stages, one after the other."""

    def __init__(self, *stages: Stage) -> None:
        self._stages = stages

    def push(self, text: str) -> str:
        """Take more text; return what every stage has settled by now."""
        for stage in self._stages:
            text = stage.push(text)
        return text

    def finish(self) -> str:
        """Return what the stages held back, each one's rest taken through the later ones."""
        rest = ""
        for stage in self._stages:
            rest = stage.push(rest) + stage.finish()
        return rest


def whole(text: str, stages: Sequence[Stage]) -> str:
    """Return a complete text, taken through fresh stages."""
    chain = Chain(*stages)
    return chain.push(text) + chain.finish()


def replacing(old: str, new: str) -> Settling:
    """Return a stage that replaces one text by another."""
    beginnings = "|".join(re.escape(old[:size]) for size in range(len(old) - 1, 0, -1))
    return Settling(lambda text: text.replace(old, new), re.compile(rf"(?:{beginnings})\Z"))
