"""From the tokens of a row to the text of an answer, as they come."""

from __future__ import annotations

import codecs
from dataclasses import dataclass, field

from ..models.formats import Reader, Verbatim
from ..models.tokenizers import Detokenizer, Tokenizer
from ..types import Chunk, FinishReason, Passage, TokenLogprob, Usage
from .decode import Row
from .odds import Odds
from .sampling import StopText


class Spelled:
    """Turns the tokens of a row that is kept to a grammar into the very text that was kept to it.

    :param lead: what the vocabulary puts before a text, and is none of it.
    """

    def __init__(self, tokenizer: Tokenizer, lead: str = "") -> None:
        self._tokenizer, self.lead, self._lead = tokenizer, lead, lead
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")

    def push(self, token: int) -> str:
        """Take a token; return the text that is complete by now."""
        piece = self._decoder.decode(self._tokenizer.spelling(token) or b"")
        if piece and self._lead:
            piece, self._lead = piece.removeprefix(self._lead), ""
        return piece

    def finish(self) -> str:
        """Return nothing: half a character at the end is left out."""
        return ""


@dataclass(eq=False)
class Answer:
    """One row together with its text."""

    row: Row
    text: Detokenizer | Spelled
    stops: StopText
    sources: tuple[Passage, ...]
    reader: Reader = field(default_factory=Verbatim)
    """Reads what the model wrote: what is said and what is called."""
    said: int = 0
    """Tokens already turned into text."""
    pieces: list[str] = field(default_factory=list)
    told: int = 0
    """Tokens whose odds have been told."""

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

    def chunk(self, piece: str) -> Chunk:
        """Return a piece of the text, with the odds of its tokens where they are noted."""
        return Chunk(piece, logprobs=self._odds())

    def _odds(self) -> tuple[TokenLogprob, ...]:
        odds = self.row.pick
        if not isinstance(odds, Odds):
            return ()
        start, self.told = self.told, self.said
        return odds.told(start, self.said, lead=self.text.lead)

    def last(self) -> Chunk:
        """Return the chunk that closes the answer, with the calls it makes."""
        usage = Usage(len(self.row.prompt), len(self.row.new))
        calls = self.reader.calls
        reason: FinishReason | None = "tool_calls" if calls else self.row.finish
        return Chunk("", reason, usage, self.sources, calls, logprobs=self._odds())
