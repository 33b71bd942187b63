"""One answer in the making: a row of the batch that is decoded."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

from ..models.causal import Placer
from .sampling import Sampler, greedy


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
    finish: Literal["stop", "length", "cancelled"] | None = None
    """Why the row ended. Whoever reads the columns may set it, and the row leaves."""
    place: Placer = int
    """Places the tokens behind the prompt; the model decides."""
    adapter: str | Mapping[str, float] | None = None
    """The adapters that the row wears; see :class:`~glmkit.types.GenerationOptions`."""

    @property
    def length(self) -> int:
        """How many of the row's tokens the cache holds, once a column was picked."""
        return len(self.prompt) + len(self.new) - 1

    def take(self, token: int) -> None:
        """Append a picked token, or end."""
        if token in self.stop_ids:
            self.finish = "stop"
            return
        self.new.append(token)
        if len(self.new) >= self.max_tokens:
            self.finish = "length"
