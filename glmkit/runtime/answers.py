"""From the tokens of a row to the text of an answer, as they come."""

from __future__ import annotations

from dataclasses import dataclass, field

from ..models.tokenizers import Detokenizer
from ..types import Chunk, Passage, Usage
from .decode import Row
from .sampling import StopText


@dataclass(eq=False)
class Answer:
    """One row together with its text."""

    row: Row
    text: Detokenizer
    stops: StopText
    sources: tuple[Passage, ...]
    said: int = 0
    """Tokens already turned into text."""
    pieces: list[str] = field(default_factory=list)

    def advance(self) -> str:
        """Return the text that the last column added; end the row at a stop string."""
        piece = "".join(self.text.push(token) for token in self.row.new[self.said :])
        self.said = len(self.row.new)
        if self.row.finish is not None:
            piece += self.text.finish()
        shown = self.stops.push(piece)
        if self.stops.stopped:
            self.row.finish = "stop"
        elif self.row.finish is not None:
            shown += self.stops.finish()
        return shown

    def last(self) -> Chunk:
        """Return the chunk that closes the answer."""
        usage = Usage(len(self.row.prompt), len(self.row.new))
        return Chunk("", self.row.finish, usage, self.sources)
