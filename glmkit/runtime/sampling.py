"""Picking tokens and ending answers. Samplers are closures over their own random state."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import cast

import torch
from torch import Tensor

from ..errors import UsageError
from .guidance import Guide
from .kernels import has_own_kernel

try:
    from . import _kernels
except ImportError:  # built without a C compiler
    _kernels = None  # type: ignore[assignment]

Sampler = Callable[[Tensor], int]
"""Takes the scores (V,) of one row, returns the next token."""

_UNLIKELY = 1e-4
"""Top-p rarely needs tokens with a smaller chance; sorting all of them costs milliseconds."""

_COLDEST = 1e-5
"""Divided by less, scores may leave float32; nothing but the best would be drawn anyway."""


def greedy(scores: Tensor) -> int:
    """Pick the most likely token."""
    if scores.device.type == "cpu" and scores.dtype == torch.float32:
        return int(scores.numpy().argmax())  # in a tenth of torch's time
    return int(scores.argmax())


def best(scores: Tensor) -> list[int]:
    """Return the token that each row likes most; -1 for a row whose scores are no numbers.

    :param scores: (B, V).
    """
    if scores.dtype == torch.float32 and scores.device.type == "cpu" and has_own_kernel():
        scores = scores.contiguous()
        found = torch.empty(len(scores), dtype=torch.int64)
        rows, width = scores.shape
        _kernels.best(scores.data_ptr(), rows, width, found.data_ptr(), torch.get_num_threads())
        return cast("list[int]", found.tolist())
    most, places = scores.max(-1)
    return cast("list[int]", places.masked_fill(~most.isfinite(), -1).tolist())


def make_sampler(
    *,
    temperature: float = 0.0,
    top_p: float = 1.0,
    top_k: int = 0,
    repetition_penalty: float = 1.0,
    seed: int | None = None,
    prompt: Sequence[int] = (),
    guide: Guide | None = None,
) -> Sampler:
    """Return a sampler for one row.

    :param temperature: 0 is greedy, and so is what is too cold to divide scores by.
    :param prompt: the row's prompt; its tokens count as present for the repetition penalty.
    :param seed: None draws a fresh one.
    :param guide: keeps the row to a grammar.
    """
    pick = greedy if temperature < _COLDEST else _drawn(temperature, top_p, top_k, seed)
    if guide is not None:
        pick = _guided(pick, guide)
    return pick if repetition_penalty == 1 else _penalised(pick, repetition_penalty, prompt)


def _guided(pick: Sampler, guide: Guide) -> Sampler:
    def follow(scores: Tensor) -> int:
        left = guide.mask(scores)
        token = pick(left)
        if float(left[token]) == -torch.inf:  # rounding, at the very end of what may be drawn
            token = greedy(left)
            if float(left[token]) == -torch.inf:
                raise UsageError(_NO_CHANCE)
        guide.take(token)
        return token

    return follow


_NO_CHANCE = "the model gives no chance at all to anything that the response format allows here"


def _drawn(temperature: float, top_p: float, top_k: int, seed: int | None) -> Sampler:
    generator = torch.Generator()
    if seed is None:
        generator.seed()
    else:
        generator.manual_seed(seed)

    def pick(scores: Tensor) -> int:
        chances, tokens = _candidates(scores.cpu().float() / temperature, top_p, top_k)
        return int(tokens[_draw(chances, generator)])

    return pick


def _candidates(scores: Tensor, top_p: float, top_k: int) -> tuple[Tensor, Tensor]:
    """Return the chances and ids of the tokens to draw from; if some are left out, best first."""
    size = scores.numel()
    if 0 < top_k < size:
        best, tokens = scores.topk(top_k)
        return _nucleus(best.softmax(-1), tokens, top_p)
    if top_p >= 1:
        return scores.softmax(-1), torch.arange(size)
    chances = scores.softmax(-1)
    likely = (chances > _UNLIKELY).nonzero()[:, 0]
    best, order = chances[likely].sort(descending=True)
    if float(best.sum()) < top_p:
        return _nucleus(*chances.sort(descending=True), top_p)
    return _nucleus(best, likely[order], top_p)


def _draw(chances: Tensor, generator: torch.Generator) -> int:
    """Draw an index by chances (N), which need not sum to 1.

    torch's multinomial makes a random number for each chance, and takes a millisecond for a
    vocabulary.
    """
    below = chances.cumsum(-1, dtype=torch.float64)
    at = torch.rand(1, generator=generator, dtype=torch.float64) * below[-1]
    return min(int(torch.searchsorted(below, at, right=True)), len(chances) - 1)


def _nucleus(chances: Tensor, tokens: Tensor, top_p: float) -> tuple[Tensor, Tensor]:
    """Keep the fewest leading candidates whose chances reach ``top_p``, one at least."""
    if top_p >= 1:
        return chances, tokens
    before = chances.cumsum(-1) - chances
    kept = max(1, int((before < top_p).sum()))
    return chances[:kept], tokens[:kept]


def _penalised(pick: Sampler, penalty: float, prompt: Sequence[int]) -> Sampler:
    present = set(prompt)

    def penalise(scores: Tensor) -> int:
        ids = torch.tensor(sorted(present), dtype=torch.long, device=scores.device)
        found = scores[ids]
        lowered = torch.where(found > 0, found / penalty, found * penalty)
        token = pick(scores.index_copy(0, ids, lowered))
        present.add(token)
        return token

    return penalise


class StopText:
    """Cuts a growing text at the first stop string, across piece borders.

    Text that may be the start of a stop string is held back until that is settled.
    """

    def __init__(self, stops: Sequence[str]) -> None:
        self.stops = tuple(stops)
        self.stopped = False
        self._held = ""

    def push(self, piece: str) -> str:
        """Take a piece of the answer; return what can be shown by now."""
        text = self._held + piece
        cut = min((at for at in map(text.find, self.stops) if at >= 0), default=-1)
        if cut >= 0:
            self.stopped, self._held = True, ""
            return text[:cut]
        keep = len(text) - self._undecided(text)
        self._held = text[keep:]
        return text[:keep]

    def finish(self) -> str:
        """Return what is still held back; the answer ended without a stop string."""
        held, self._held = self._held, ""
        return held

    def _undecided(self, text: str) -> int:
        """Return the length of the longest end of ``text`` that begins a stop string."""
        longest = max(map(len, self.stops), default=1) - 1
        for size in range(min(longest, len(text)), 0, -1):
            if any(stop.startswith(text[-size:]) for stop in self.stops):
                return size
        return 0
