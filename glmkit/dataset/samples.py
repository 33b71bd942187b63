"""What training data is once it is read, whatever the format of its file."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

from ..errors import DataError
from ..tables.files import Place
from ..types import Message

TRAIN_ON = ("all", "last")
"""Which answers of a conversation are learnt."""


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


class BadRow(NamedTuple):
    """A row of a file that is no sample, and why."""

    source: str
    place: Place
    reason: str

    def __str__(self) -> str:
        return f"{self.source}, {self.place}: {self.reason}"
