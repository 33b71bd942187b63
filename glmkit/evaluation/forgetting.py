"""What a model has forgotten by being tuned: general questions, and texts of every day.

The questions have answers that can be checked: a right one contains one of the words that are
listed with it. They are few and easy, for what they shall show is damage, not merit.
"""

from __future__ import annotations

import json
import re
import unicodedata
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from functools import lru_cache
from importlib import resources
from typing import Any

from ..dataset.samples import Sample
from ..types import Message
from .comparing import Difference, Measure, difference, mean, perplexity
from .scores import normalised


@dataclass(frozen=True)
class Question:
    """A general question."""

    question: str
    language: str
    """ISO 639-1."""
    answers: tuple[str, ...]
    """A right answer contains one of them."""

    def right(self, answer: str) -> bool:
        """Tell whether an answer is right."""
        text = unicodedata.normalize("NFKC", answer).casefold()
        return any(_contains(text, each.casefold()) for each in self.answers)


def _contains(text: str, word: str) -> bool:
    """Tell whether a text has a word; a number is none that is a part of another one."""
    if not word.isascii():
        return word in text
    return re.search(_WORD.format(re.escape(word)), text) is not None


_WORD = r"(?<![a-z0-9])(?<!\d[.,]){}(?![a-z0-9]|[.,]\d)"


def questions(languages: Collection[str] | None = None) -> tuple[Question, ...]:
    """Return the questions of some languages; None: of all."""
    return tuple(
        Question(each["question"], each["language"], tuple(each["answers"]))
        for each in _of("questions.jsonl", languages)
    )


def texts(languages: Collection[str] | None = None) -> tuple[Sample, ...]:
    """Return general texts as answers that a model can be asked how likely it finds them."""
    return tuple(
        Sample(
            (Message("user", each["question"]), Message("assistant", each["text"])),
            (0.0, 1.0),
            "general texts",
        )
        for each in _of("texts.jsonl", languages)
    )


def _of(name: str, languages: Collection[str] | None) -> list[Mapping[str, Any]]:
    return [each for each in _rows(name) if languages is None or each["language"] in languages]


@lru_cache
def _rows(name: str) -> tuple[Mapping[str, Any], ...]:
    text = resources.files(__package__).joinpath(name).read_text(encoding="utf-8")
    return tuple(map(json.loads, text.splitlines()))


@dataclass(frozen=True)
class Outcome:
    """What two models say to a question."""

    question: Question
    base: str
    tuned: str

    @property
    def broken(self) -> bool:
        """Whether it was right and is no longer."""
        return self.question.right(self.base) and not self.question.right(self.tuned)

    @property
    def mended(self) -> bool:
        """Whether it is right and was not."""
        return self.question.right(self.tuned) and not self.question.right(self.base)

    @property
    def changed(self) -> bool:
        """Whether another text is said, right or not."""
        return normalised(self.base) != normalised(self.tuned)


@dataclass(frozen=True)
class Forgetting:
    """What became of general questions and texts."""

    outcomes: tuple[Outcome, ...]
    base_losses: tuple[Measure, ...] = ()
    """Of each general text; empty where a model cannot be asked."""
    tuned_losses: tuple[Measure, ...] = ()

    @property
    def base_right(self) -> float:
        """The share of questions that the base answers, 0 to 1."""
        return _share(each.question.right(each.base) for each in self.outcomes)

    @property
    def tuned_right(self) -> float:
        """The share of questions that the tuned model answers, 0 to 1."""
        return _share(each.question.right(each.tuned) for each in self.outcomes)

    @property
    def right(self) -> Difference | None:
        """The share of right answers, tuned minus base."""
        base = [Measure(float(each.question.right(each.base))) for each in self.outcomes]
        tuned = [Measure(float(each.question.right(each.tuned))) for each in self.outcomes]
        return difference(base, tuned)

    @property
    def changed(self) -> float:
        """The share of answers that are other texts, 0 to 1."""
        return _share(each.changed for each in self.outcomes)

    @property
    def broken(self) -> list[Outcome]:
        """The questions that were answered right and are no longer."""
        return [each for each in self.outcomes if each.broken]

    @property
    def perplexity_ratio(self) -> float | None:
        """How many times as surprising general texts are as before; None where nobody asked."""
        before, after = mean(self.base_losses), mean(self.tuned_losses)
        return None if before is None or after is None else perplexity(after - before)

    def as_dict(self) -> dict[str, Any]:
        """Return what is printed as JSON."""
        right = self.right
        return {
            "questions": len(self.outcomes),
            "base_right": self.base_right,
            "tuned_right": self.tuned_right,
            "right_difference": None if right is None else [right.value, right.low, right.high],
            "changed": self.changed,
            "broken": [_said(each) for each in self.broken],
            "mended": [_said(each) for each in self.outcomes if each.mended],
            "perplexity_ratio": self.perplexity_ratio,
        }


def _said(outcome: Outcome) -> dict[str, Any]:
    return {
        "question": outcome.question.question,
        "expected": list(outcome.question.answers),
        "base": outcome.base,
        "tuned": outcome.tuned,
    }


def _share(flags: Iterable[bool]) -> float:
    found = list(flags)
    return sum(found) / len(found) if found else 0.0
