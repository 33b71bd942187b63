"""Answers and whether people found them good, from the feedback that they gave.

Light floor, as :mod:`glmkit.feedback` is.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from .feedback import DISPUTED, NO_OPINION, SAME_TEXT, Feedback, as_asked
from .types import Message

NO_ANSWER = "the answer is empty"


@dataclass(frozen=True)
class Judgement:
    """An answer to a conversation, and whether it is a good one."""

    messages: tuple[Message, ...]
    answer: str
    good: bool

    def as_row(self) -> dict[str, Any]:
        """Return it as a row that ``glmkit finetune kto``, and TRL, read."""
        return {
            "prompt": [{"role": each.role, "content": each.content} for each in self.messages],
            "completion": [{"role": "assistant", "content": self.answer}],
            "label": self.good,
        }


@dataclass(frozen=True)
class Judgements:
    """Answers with a verdict, and why some feedback became none."""

    found: Sequence[Judgement]
    skipped: Mapping[str, int]
    """Feedback that says nothing of an answer, by reason."""


def judgements_of(rows: Iterable[Feedback]) -> Judgements:
    """Return the answers that ``rows`` say to be good or not.

    A thumb is a vote; a better answer is a vote for itself, and, where there is no thumb, one
    against the answer that was shown. Votes for the same words after the same conversation are
    summed. What was answered from documents is asked with them.
    """
    questions: dict[str, list[Feedback]] = {}
    for row in rows:
        questions.setdefault(row.asked, []).append(row)
    found: dict[tuple[str, str], Judgement] = {}
    skipped: Counter[str] = Counter()
    for asked, group in questions.items():
        votes: Counter[str] = Counter()
        for row in group:
            for text, vote in _votes(row):
                votes[text] += vote
        for row in group:
            mine = [text for text, _ in _votes(row) if votes[text]]
            for text in mine:
                found[asked, text] = Judgement(as_asked(row), text, votes[text] > 0)
            if not mine:
                skipped[_why_none(row)] += 1
    return Judgements(list(found.values()), dict(skipped))


def _votes(row: Feedback) -> Iterator[tuple[str, int]]:
    """Yield the answers that a row says something of, with its vote for or against each."""
    better, shown = row.better.strip(), row.answer.strip()
    corrected = bool(better) and better != shown
    if shown and (row.rating or corrected):
        yield shown, row.rating or -1
    if corrected:
        yield better, 1


def _why_none(row: Feedback) -> str:
    if any(_votes(row)):
        return DISPUTED
    if row.rating:
        return NO_ANSWER
    return SAME_TEXT if row.better.strip() else NO_OPINION
