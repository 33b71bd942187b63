"""One answer in the making: a row of the batch that is decoded."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

from torch import Tensor

from ..errors import CheckpointError, GlmkitError
from ..models.causal import Placer
from .guidance import Guide
from .sampling import Sampler, best, greedy


@dataclass(eq=False)
class Row:
    """One answer in the making."""

    prompt: Sequence[int]
    """Token ids, one at least."""
    max_tokens: int
    stop_ids: frozenset[int] = frozenset()
    pick: Sampler = greedy
    new: list[int] = field(default_factory=list)
    """The tokens so far; a stop token is never among them."""
    finish: Literal["stop", "length", "cancelled", "error"] | None = None
    """Why the row ended. Whoever reads the columns may set it, and the row leaves."""
    error: GlmkitError | None = None
    """What went wrong, where the row ended in an error; the other rows go on."""
    place: Placer = int
    """Places the tokens behind the prompt; the model decides."""
    adapter: str | Mapping[str, float] | None = None
    """The adapters that the row wears; see :class:`~glmkit.types.GenerationOptions`."""
    guide: Guide | None = None
    """Keeps the row to a grammar; :attr:`pick` asks it, and where it is over, so is the row."""

    @property
    def length(self) -> int:
        """How many of the row's tokens the cache holds, once a column was picked."""
        return len(self.prompt) + len(self.new) - 1

    @property
    def left(self) -> int:
        """How many tokens it may still get."""
        return self.max_tokens - len(self.new)

    def take(self, token: int) -> None:
        """Append a picked token, or end."""
        if token in self.stop_ids:
            self.finish = "stop"
            return
        self.new.append(token)
        if self.guide is not None and self.guide.over:
            self.finish = "stop"
        elif len(self.new) >= self.max_tokens:
            self.finish = "length"

    def fail(self, error: GlmkitError) -> None:
        """End in an error."""
        self.error, self.finish = error, "error"


def pick(rows: Sequence[Row], scores: Tensor) -> None:
    """Let every row pick from its scores, (B, V); one whose scores are no numbers fails."""
    tokens = best(scores)
    if any(row.pick is not greedy for row in rows):
        scores = scores.float().cpu()  # at once: one by one the way is long
    for at, (row, token) in enumerate(zip(rows, tokens, strict=True)):
        try:
            if token < 0:
                raise CheckpointError(_NOT_NUMBERS)
            row.take(token if row.pick is greedy else row.pick(scores[at]))
        except GlmkitError as error:
            row.fail(error)


_NOT_NUMBERS = (
    "the model's scores are not numbers (NaN or infinite): its weights are damaged, or "
    "they overflow in half precision; fetch them again or load with dtype='float32'"
)
