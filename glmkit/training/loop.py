"""The one training loop: steps of an optimizer over planned batches, as a generator.

Every step seeds the random numbers that it draws (dropout, noise) by its own number: a run that
goes on from a checkpoint, and one that evaluates in between, draw the same as one that does not.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import torch
from torch import nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from ..errors import BadStepError, GlmkitError
from ..evaluation.comparing import Measure, add, means
from ..recipes import StepLog
from .checkpoint import Checkpoints
from .config import RunConfig
from .crew import Crew
from .learner import Loss
from .optimizers import plain
from .state import TrainerState


class Feed(Protocol):
    """Which batches each process gets in each step; see `batches.py`."""

    def steps(self, epoch: int = 0) -> int:
        """Return how many steps an epoch has; all have as many."""
        ...

    def batches(self, epoch: int, step: int, rank: int) -> Sequence[Any]:
        """Return the passes of one process in a step of an epoch; all processes have as many."""
        ...

    def weight(self, epoch: int, step: int) -> float:
        """Return the weight of a step, of all processes."""
        ...

    def tokens(self, epoch: int, step: int) -> int:
        """Return the tokens of a step, of all processes."""
        ...


@dataclass
class Work:
    """All that a run trains with."""

    config: RunConfig
    learner: nn.Module
    """Called with a batch, returns a :class:`.learner.Loss`."""
    feed: Feed
    crew: Crew
    optimizer: Optimizer
    schedule: LRScheduler
    total: int
    """Steps of the run."""
    checkpoints: Checkpoints
    evaluate: Callable[[], Mapping[str, float]] | None = None
    """Measures ``eval_loss`` and what else there is; called by all processes together."""
    state: TrainerState = field(default_factory=TrainerState)


def total_steps(config: RunConfig, steps_per_epoch: int) -> int:
    """Return how many steps a run has."""
    return config.max_steps or max(1, math.ceil(config.epochs * steps_per_epoch))


def learn(work: Work) -> Iterator[StepLog]:
    """Train from where ``work.state`` stands to the end.

    :raises GlmkitError: if the loss is not a finite number.
    :raises BadStepError: if the feed or the learner refuses a step, or an evaluation; the model is
        saved as it was before.
    """
    state = work.state
    state.max_steps = work.total
    while state.global_step < work.total and not _is_enough(work):
        place = _Place(*divmod(state.global_step, work.feed.steps()))
        with _kept(work):
            done = _step(work, place)
        _count(state, done)
        ends = state.global_step == work.total
        if ends or state.global_step % work.config.logging_steps == 0:
            yield _noted(work, _line(work, done))
        yield from _between(work, place, ends)
    if _is_enough(work):
        yield log(work, note="stopped early: the loss of evaluations falls no more")


@contextmanager
def _kept(work: Work) -> Iterator[None]:
    """Save the model as it is if what is done with it must not go on."""
    try:
        yield
    except BadStepError as error:
        raise BadStepError(f"{error}; {save(work)} holds the model as it was before") from error


def log(work: Work, *, metrics: Mapping[str, float] | None = None, note: str = "") -> StepLog:
    """Return a line that no step belongs to."""
    state = work.state
    return StepLog(
        step=state.global_step,
        total=work.total,
        epoch=state.epoch,
        tokens=state.tokens,
        metrics=metrics or {},
        note=note,
    )


def _between(work: Work, place: _Place, ends: bool) -> Iterator[StepLog]:
    """Evaluate and save where it is time."""
    better = False
    if work.evaluate is not None and _due(work.config.eval_steps, work, place, ends):
        with _kept(work):
            metrics = work.evaluate()
        better = _judge(work.state, metrics)
        yield _noted(work, log(work, metrics=metrics))
    keep_best = better and work.config.early_stopping > 0
    if keep_best or _due(work.config.save_steps, work, place, ends):
        saved = save(work)
        yield log(work, note=f"saved {saved}")


def _due(every: int, work: Work, place: _Place, ends: bool) -> bool:
    if every:
        return ends or work.state.global_step % every == 0
    return ends or place.step + 1 == work.feed.steps()


def _judge(state: TrainerState, metrics: Mapping[str, float]) -> bool:
    """Tell whether the model is better than ever, by the loss of an evaluation."""
    loss = metrics.get("eval_loss")
    if loss is None:
        return False
    if state.best_metric is None or loss < state.best_metric:
        state.best_metric, state.best_step, state.bad_evaluations = loss, state.global_step, 0
        return True
    state.bad_evaluations += 1
    return False


def _is_enough(work: Work) -> bool:
    patience = work.config.early_stopping
    return 0 < patience <= work.state.bad_evaluations


def save(work: Work) -> str:
    """Write a checkpoint of where the run stands; return its name. All processes call it."""
    crew, state = work.crew, work.state
    state.schedule = plain(work.schedule.state_dict())
    trained = crew.trained(work.learner)
    optimizer = crew.optimizer_state(work.learner, work.optimizer)
    if crew.rank == 0:
        work.checkpoints.save(state, trained, optimizer)
    crew.wait()
    return f"checkpoint-{state.global_step}"


def restore(work: Work, checkpoint: Path) -> None:
    """Go on from a checkpoint. All processes call it.

    :raises CheckpointError: if it is damaged, or one of another training.
    """
    work.crew.set_trained(work.learner, work.checkpoints.trained(checkpoint))
    state = work.checkpoints.optimizer(checkpoint)
    work.crew.set_optimizer_state(work.learner, work.optimizer, state)
    work.state = TrainerState.read(checkpoint)
    work.schedule.load_state_dict(work.schedule.state_dict() | work.state.schedule)
    for group, rate in zip(work.optimizer.param_groups, work.schedule.get_last_lr(), strict=True):
        group["lr"] = rate


def _noted(work: Work, line: StepLog) -> StepLog:
    """Remember a line in the state."""
    entry: dict[str, Any] = {"step": line.step, "epoch": round(line.epoch, 4)}
    for name in ("loss", "learning_rate", "grad_norm", "tokens_per_s"):
        value = getattr(line, name)
        if value is not None:
            entry[name] = value
    work.state.log_history.append({**entry, **line.metrics})
    return line


class _Place(NamedTuple):
    """Where in its epoch a step is; both count from 0."""

    epoch: int
    step: int


class _Done(NamedTuple):
    """What a step came to, of all processes."""

    total: float
    """Sum of weighted losses."""
    weight: float
    figures: Mapping[str, Measure]
    """Sums of what else the learner gave."""
    norm: float
    """Of the gradients."""
    rate: float
    """With which the step was done."""


def _step(work: Work, place: _Place) -> _Done:
    """Do one step of the optimizer."""
    began = time.monotonic()
    crew, state = work.crew, work.state
    torch.manual_seed(_seed(work.config.seed, state.global_step, crew.rank))
    done = _gradients(work, place)
    _refuse_nonsense(work, done)
    work.optimizer.step()
    work.schedule.step()
    work.optimizer.zero_grad(set_to_none=True)
    state.global_step += 1
    state.epoch = place.epoch + (place.step + 1) / work.feed.steps()
    state.tokens += work.feed.tokens(*place)
    state.seconds += time.monotonic() - began
    return done


def _gradients(work: Work, place: _Place) -> _Done:
    """Take the gradients of a step's mean loss."""
    crew, weight = work.crew, work.feed.weight(*place)
    batches = work.feed.batches(*place, crew.rank)
    work.learner.train()
    total = torch.zeros((), device=crew.device)
    figures: dict[str, Measure] = {}
    for at, batch in enumerate(batches):
        with crew.turn(work.learner, last=at == len(batches) - 1):
            found: Loss = work.learner(batch.to(crew.device))
            crew.backward(found.total / weight)
        total += found.total.detach().to(total.device)
        add(figures, found.measures())
    norm = crew.clipped(work.learner, work.config.max_grad_norm)
    rate = float(work.schedule.get_last_lr()[0])
    whole, *others = crew.summed(
        float(total), *(part for each in figures.values() for part in each)
    )
    pairs = map(Measure, others[::2], others[1::2])
    return _Done(whole, weight, dict(zip(figures, pairs, strict=True)), norm, rate)


def _count(state: TrainerState, done: _Done) -> None:
    """Add a step to what the next line of the log is about."""
    state.open_total += done.total
    state.open_weight += done.weight
    add(state.open_figures, done.figures)


def _seed(seed: int, step: int, rank: int) -> int:
    return ((seed * 1_000_003 + step) * 4_099 + rank) & (2**63 - 1)


def _refuse_nonsense(work: Work, done: _Done) -> None:
    loss = done.total / done.weight
    if math.isfinite(loss) and math.isfinite(done.norm):
        return
    what = f"the loss is {loss}" if not math.isfinite(loss) else f"the gradient is {done.norm}"
    raise GlmkitError(
        f"step {work.state.global_step + 1}: {what}, so nothing more can be learnt; lower "
        f"--learning-rate (now {work.config.learning_rate:g}), or take --dtype bfloat16 or float32 "
        f"(now {work.config.dtype}); checkpoints before this step are as they were"
    )


def _line(work: Work, done: _Done) -> StepLog:
    """Return the line of the log for the steps since the last one."""
    state = work.state
    seconds = max(state.seconds - state.logged_seconds, 1e-9)
    line = StepLog(
        step=state.global_step,
        total=work.total,
        epoch=state.epoch,
        loss=state.open_total / state.open_weight,
        learning_rate=done.rate,
        grad_norm=done.norm,
        tokens=state.tokens,
        tokens_per_s=(state.tokens - state.logged_tokens) / seconds,
        seconds_left=(work.total - state.global_step) * state.seconds / state.global_step,
        metrics=means(state.open_figures),
    )
    state.logged_tokens, state.logged_seconds = state.tokens, state.seconds
    state.open_total = state.open_weight = 0.0
    state.open_figures = {}
    return line
