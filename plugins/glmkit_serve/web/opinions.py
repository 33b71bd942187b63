"""What visitors thought of answers, on its way into the table."""

from __future__ import annotations

from typing import TYPE_CHECKING

from glmkit.feedback import Feedback

if TYPE_CHECKING:
    from glmkit.feedback import FeedbackStore, Rating

    from .visits import Turn, Visit


def turn_at(visit: Visit, index: object) -> Turn | None:
    """Return the turn that a message of the page belongs to; None where there is no such one.

    :param index: of the message: two a turn. It comes from a browser.
    """
    if isinstance(index, (list, tuple)) and index:
        index = index[0]
    if not isinstance(index, int) or not 0 <= index < 2 * len(visit.turns):
        return None
    turn = visit.turns[index // 2]
    return turn if turn.answer and not turn.problem else None


def rate(store: FeedbackStore, turn: Turn, rating: Rating) -> None:
    """Store what somebody thinks of an answer, or that they take it back."""
    turn.rating = rating
    if turn.opinion is None:
        turn.opinion = store.add(_feedback(turn))
    else:
        store.revise(turn.opinion, rating=rating)


def improve(store: FeedbackStore, turn: Turn, better: str) -> None:
    """Store what the answer should have been."""
    if turn.opinion is None:
        turn.opinion = store.add(_feedback(turn))
    store.revise(turn.opinion, better=better.strip())


def _feedback(turn: Turn) -> Feedback:
    return Feedback(
        turn.messages,
        turn.answer,
        turn.rating,
        model=turn.voice,
        adapter=turn.adapter,
        knowledge=turn.base.removeprefix("@"),
        sources=turn.sources,
    )
