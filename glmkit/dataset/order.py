"""From the turns of a row to a sample: the order of roles, and what is learnt."""

from __future__ import annotations

from collections.abc import Sequence

from ..errors import DataError
from ..tables.files import Place
from ..types import Message
from .samples import Sample
from .turns import Turn

_WORDS = {
    "system": "the system message",
    "user": "a question",
    "assistant": "an answer",
    "observation": "what a tool returned",
}


def sample_of(
    turns: Sequence[Turn],
    train_on: str,
    source: str = "",
    place: Place = Place(),  # noqa: B008
) -> Sample:
    """Return the sample that a conversation is.

    :raises DataError: if its roles are out of order, or nothing in it can be learnt.
    """
    check_order([each.message for each in turns])
    answers = [at for at, turn in enumerate(turns) if turn.message.role == "assistant"]
    learnt = set(answers if train_on == "all" else answers[-1:])
    weights = tuple(_weight(turn, at in learnt, at + 1) for at, turn in enumerate(turns))
    for number, (turn, weight) in enumerate(zip(turns, weights, strict=True), 1):
        if weight and not turn.message.content.strip() and not turn.message.tool_calls:
            raise DataError(f"message {number}: the answer is empty")
    if not any(weights):
        raise DataError("none of its answers is learnt: their weights are 0")
    return Sample(tuple(turn.message for turn in turns), weights, source, place)


def _weight(turn: Turn, learnt: bool, number: int) -> float:
    if turn.message.role == "assistant":
        return (1.0 if turn.weight is None else turn.weight) if learnt else 0.0
    if turn.weight:
        raise DataError(
            f"message {number} is {_WORDS[turn.message.role]} with the weight {turn.weight:g}; "
            "only answers are learnt"
        )
    return 0.0


def check_order(messages: Sequence[Message]) -> None:
    """Refuse a conversation whose turns do not follow each other as they must.

    :raises DataError: naming the first message that is out of order.
    """
    before: Message | None = None
    for number, message in enumerate(messages, 1):
        allowed = _after(before)
        if message.role not in allowed:
            raise DataError(
                f"roles are out of order: message {number} is {_WORDS[message.role]}, expected "
                + " or ".join(_WORDS[each] for each in allowed)
            )
        if message.role == "user" and not message.content.strip():
            raise DataError(f"message {number}: the question is empty")
        before = message
    if before is None or before.role != "assistant":
        said = "nothing" if before is None else _WORDS[before.role]
        raise DataError(f"it must end with an answer, and ends with {said}")


def _after(message: Message | None) -> tuple[str, ...]:
    if message is None:
        return ("system", "user")
    if message.tool_calls:
        return ("observation",)
    return {
        "system": ("user", "system"),
        "user": ("assistant",),
        "assistant": ("user", "observation"),
    }.get(message.role, ("assistant", "observation"))
