"""From the tokens of a row to the text of an answer, as they come."""

from __future__ import annotations

from dataclasses import dataclass, field

from ..models.formats import Reader, Verbatim
from ..models.tokenizers import Detokenizer
from ..types import Chunk, FinishReason, Passage, Usage
from .decode import Row
from .sampling import StopText


@dataclass(eq=False)
class Answer:
    """One row together with its text."""

    row: Row
    text: Detokenizer
    stops: StopText
    sources: tuple[Passage, ...]
    reader: Reader = field(default_factory=Verbatim)
    """Reads what the model wrote: what is said and what is called."""
    said: int = 0
    """Tokens already turned into text."""
    pieces: list[str] = field(default_factory=list)

    def advance(self) -> str:
        """Return the text that the last column added; end the row at a stop string."""
        over = self.row.finish is not None
        piece = "".join(self.text.push(token) for token in self.row.new[self.said :])
        self.said = len(self.row.new)
        shown = self.reader.push(piece + self.text.finish() if over else piece)
        if over:
            shown += self.reader.finish()
        shown = self.stops.push(shown)
        if self.stops.stopped:
            self.row.finish = "stop"
        elif over:
            shown += self.stops.finish()
        return shown

    def last(self) -> Chunk:
        """Return the chunk that closes the answer, with the calls it makes."""
        usage = Usage(len(self.row.prompt), len(self.row.new))
        calls = self.reader.calls
        reason: FinishReason | None = "tool_calls" if calls else self.row.finish
        return Chunk("", reason, usage, self.sources, calls)
