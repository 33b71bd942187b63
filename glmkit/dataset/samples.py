"""What training data is once it is read, whatever the format of its file."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, NamedTuple

from ..errors import DataError
from ..tables.files import Place
from ..types import Message

TRAIN_ON = ("all", "last")
"""Which answers of a conversation are learnt."""
RANKED = ("all", "best")
"""Which pairs ranked answers make: each with every worse one, or only the best with the others."""
_WIDEST = 1e15
"""The largest margin: single precision holds it, and sums of it."""
Kind = Literal["answers", "preferences", "verdicts"]
"""What data holds, and is read for: answers to learn, answers to compare, answers of which each is
said to be good or not."""


@dataclass(frozen=True)
class Sample:
    """One conversation to learn from.

    :raises DataError: if there is not one weight per message, or none above 0.
    """

    messages: tuple[Message, ...]
    """Ends with what an assistant says."""
    weights: tuple[float, ...]
    """How much each message counts in the loss, 0 or more; 0 for all but an assistant's."""
    source: str = ""
    """The file that it was read from."""
    place: Place = Place()
    """Where in there."""
    beside: Message | None = None
    """The answer that the last one is compared with: the same turns are kept before both."""

    def __post_init__(self) -> None:
        if len(self.weights) != len(self.messages) or not self.messages:
            raise DataError(
                f"a sample needs one weight per message, got {len(self.weights)} for "
                f"{len(self.messages)} messages"
            )
        if self.messages[-1].role != "assistant":
            raise DataError(
                f"a sample must end with what the assistant says, got {self.messages[-1].role!r}"
            )
        for message, weight in zip(self.messages, self.weights, strict=True):
            if not weight >= 0 or (weight and message.role != "assistant"):
                raise DataError(
                    f"only answers of the assistant are learnt, with weights from 0; got {weight} "
                    f"for a {message.role} message"
                )
        if not any(self.weights):
            raise DataError("nothing in the sample is learnt: all weights are 0")


@dataclass(frozen=True)
class Preference:
    """Two answers in the same place, of which one is better.

    :raises DataError: if something other than two different answers follows a question.
    """

    prompt: tuple[Message, ...]
    """What was said before; ends with a question, or what a tool returned."""
    chosen: Message
    """The better answer."""
    rejected: Message
    """The worse one."""
    margin: float | None = None
    """How much better it is, where somebody said so; 0 or more."""
    source: str = ""
    """The file that it was read from."""
    place: Place = Place()
    """Where in there."""

    def __post_init__(self) -> None:
        if not self.prompt or self.prompt[-1].role not in ("user", "observation"):
            raise DataError("a preference needs a question in front of its answers")
        for each in (self.chosen, self.rejected):
            if each.role != "assistant":
                raise DataError(f"answers are the assistant's, got one of the role {each.role!r}")
        if self.margin is not None and not 0 <= self.margin <= _WIDEST:
            raise DataError(
                f"the margin must be a number from 0 to {_WIDEST:g}, got {self.margin!r}"
            )
        if _said(self.chosen) == _said(self.rejected):
            raise DataError("chosen and rejected are the same answer: nothing to compare")

    @property
    def conversations(self) -> tuple[tuple[Message, ...], tuple[Message, ...]]:
        """What was said with the better answer, and with the worse one."""
        return (*self.prompt, self.chosen), (*self.prompt, self.rejected)


def compared(pair: Preference, which: int) -> Sample:
    """Return the conversation with the better answer (0) or the worse one (1), which is learnt."""
    answer, other = (pair.chosen, pair.rejected) if which == 0 else (pair.rejected, pair.chosen)
    weights = (*(0.0 for _ in pair.prompt), 1.0)
    return Sample((*pair.prompt, answer), weights, pair.source, pair.place, other)


@dataclass(frozen=True)
class Verdict:
    """An answer, and whether it is a good one.

    :raises DataError: if something other than an answer follows a question.
    """

    prompt: tuple[Message, ...]
    """What was said before; ends with a question, or what a tool returned."""
    answer: Message
    good: bool
    """Desirable, as KTO calls it."""
    source: str = ""
    """The file that it was read from."""
    place: Place = Place()
    """Where in there."""

    def __post_init__(self) -> None:
        if not self.prompt or self.prompt[-1].role not in ("user", "observation"):
            raise DataError("a verdict needs a question in front of its answer")
        if self.answer.role != "assistant":
            raise DataError(f"answers are the assistant's, got one of {self.answer.role!r}")

    @property
    def conversation(self) -> tuple[Message, ...]:
        """All that was said."""
        return (*self.prompt, self.answer)

    @property
    def sample(self) -> Sample:
        """The conversation, of which the last answer is learnt."""
        weights = (*(0.0 for _ in self.prompt), 1.0)
        return Sample(self.conversation, weights, self.source, self.place)


Row = Sample | Preference | Verdict
"""What a row of a file may be."""


def _said(answer: Message) -> tuple[str, list[tuple[str, str]]]:
    return answer.content.strip(), [(each.name, repr(each.arguments)) for each in answer.tool_calls]


class BadRow(NamedTuple):
    """A row of a file that is no sample, and why."""

    source: str
    place: Place
    reason: str

    def __str__(self) -> str:
        return f"{self.source}, {self.place}: {self.reason}"
