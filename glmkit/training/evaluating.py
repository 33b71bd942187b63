"""Measuring a model while it trains, on data that it does not learn from.

All processes measure together and as often as each other, so that sharded models can take part.
Nothing is drawn at random, no gradients are kept, and the model trains on as if nobody had asked.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Protocol

import torch
from torch import nn

from ..errors import GlmkitError
from ..evaluation.comparing import Measure, add, means, perplexity
from ..evaluation.predicting import text_of
from ..types import Ask, GenerationOptions, Progress, Reply
from .crew import Crew
from .learner import Loss, computing_in

if TYPE_CHECKING:
    from ..dataset.samples import Sample
    from ..evaluation.scores import Scorer
    from ..runtime.engines.local import LocalModel


class EvalFeed(Protocol):
    """What is measured on; `batches.Feed` is one."""

    def steps(self, epoch: int = 0) -> int:
        """Return how many steps the data takes."""
        ...

    def batches(self, epoch: int, step: int, rank: int = 0) -> Sequence[Any]:
        """Return what one process takes in a step; all processes have as many."""
        ...


@contextmanager
def judged(learner: nn.Module) -> Iterator[None]:
    """Let a learner be asked without dropout and gradients; it goes on as it was."""
    before = learner.training
    learner.eval()
    try:
        with torch.no_grad():
            yield
    finally:
        learner.train(before)


def losses(
    learner: nn.Module, feed: EvalFeed, *, device: torch.device, rank: int = 0
) -> Generator[Progress, None, list[Measure]]:
    """Measure the loss of each batch, in nats, with the weight that it is of.

    :param device: where batches go.
    :param rank: which process this is; each measures its share.
    """
    found: list[Measure] = []
    steps = feed.steps()
    for step in range(steps):
        yield Progress("measuring the loss", step, steps)
        own = _losses_of(learner, feed.batches(0, step, rank), device)
        found += [Measure(float(each.total), float(each.weight)) for each in own]
    yield Progress("measuring the loss", steps, steps)
    return found


def _losses(learner: nn.Module, feed: EvalFeed, device: torch.device, rank: int) -> Iterator[Loss]:
    for step in range(feed.steps()):
        yield from _losses_of(learner, feed.batches(0, step, rank), device)


def _losses_of(learner: nn.Module, batches: Sequence[Any], device: torch.device) -> list[Loss]:
    with judged(learner):
        return [learner(each.to(device)) for each in batches]


class Evaluation:
    """Measures ``eval_loss``, the learner's figures, and what ``more`` measures.

    :param learner: the one that trains, as the crew prepared it.
    :param more: measures something else, as a part of each process: sums by name, and the number
        of rows under :data:`ROWS`; see :class:`Generating`.
    """

    def __init__(
        self,
        learner: nn.Module,
        feed: EvalFeed,
        crew: Crew,
        *,
        more: Callable[[int, int], Mapping[str, float]] | None = None,
        perplexity: bool = True,
    ) -> None:
        self.learner, self.feed, self.crew, self.more = learner, feed, crew, more
        self.perplexity = perplexity

    def __call__(self) -> dict[str, float]:
        """Return the figures of all processes together; all of them call it."""
        sums = self._sums()
        parts = self.crew.summed(*(part for each in sums.values() for part in each))
        whole = dict(zip(sums, map(Measure, parts[::2], parts[1::2]), strict=True))
        found = {"eval_loss": math.nan}
        found |= {f"eval_{name}": each for name, each in means(whole).items()}
        if self.perplexity:
            found["eval_perplexity"] = perplexity(found["eval_loss"])
        if self.more is not None:
            found |= self._more(self.more)
        return found

    def _sums(self) -> dict[str, Measure]:
        """Return loss and figures of this process' share."""
        sums = {"loss": Measure(0.0, 0.0)}
        for found in _losses(self.learner, self.feed, self.crew.device, self.crew.rank):
            add(sums, {"loss": Measure(float(found.total), float(found.weight))})
            add(sums, found.measures())
        return sums

    def _more(self, more: Callable[[int, int], Mapping[str, float]]) -> dict[str, float]:
        own = more(self.crew.rank, self.crew.world)
        sums = dict(zip(own, self.crew.summed(*own.values()), strict=True))
        rows = sums.pop(ROWS)
        return {f"eval_{name}": total / rows if rows else 0.0 for name, total in sums.items()}


ROWS = "rows"


class Generating:
    """Answers some samples with the model that trains, and scores the answers.

    Memory stays bounded: keys and values take what is free at the time and no more, as in every
    batch; where that is little, fewer rows run side by side.

    :param local: what the model that trains was loaded as. What it remembers of prompts is of
        older weights: each time it is asked anew.
    :param samples: a few; each process answers its share of them.
    :param computing: what products are taken in; see :class:`~.learner.Learner`.
    """

    def __init__(
        self,
        local: LocalModel,
        samples: Sequence[Sample],
        scorer: Scorer,
        *,
        max_new_tokens: int = 128,
        computing: torch.dtype | None = None,
    ) -> None:
        self._local, self._samples, self._scorer = local, samples, scorer
        self._computing = computing
        self._options = GenerationOptions(max_tokens=max_new_tokens, temperature=0)
        # Whether rows have the other one depends on their language.
        self._names = [each for each in scorer.scores if each != "bleu-4-words"]

    def __call__(self, rank: int, world: int) -> dict[str, float]:
        """Return the sum of each score over this process' share, and its rows."""
        local = self._local.anew()
        own = self._samples[rank::world]
        sums = dict.fromkeys(self._names, 0.0) | {ROWS: float(len(own))}
        like = local.model.like
        with judged(local.model), computing_in(self._computing, like.device):
            asks = (Ask(at, each.messages[:-1], self._options) for at, each in enumerate(own))
            for at, reply in local.answers(asks):
                scores = self._scores(own[at], reply)
                for name in self._names:
                    sums[name] += scores[name]
        return sums

    def _scores(self, sample: Sample, reply: Reply | GlmkitError) -> Mapping[str, float]:
        """Return the scores of an answer; one that cannot be had is an empty one."""
        text = text_of(reply.text, reply.tool_calls) if isinstance(reply, Reply) else ""
        answer = sample.messages[-1]
        return self._scorer.score(text, text_of(answer.content, answer.tool_calls))
