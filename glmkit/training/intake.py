"""Data on its way into a run: read, split, tokenised, planned."""

from __future__ import annotations

from collections.abc import Generator, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import TypeVar

from ..dataset.columns import ColumnNames
from ..dataset.data import Data, opening
from ..errors import DataError, UsageError
from ..recipes import StepLog
from ..types import Progress
from .batches import Batch, Example, Feed, Listed
from .config import TrainConfig
from .encoding import SampleEncoder
from .plan import Shape

ResultT = TypeVar("ResultT")


@dataclass(frozen=True)
class Intake:
    """What a run learns from."""

    feed: Feed[Example, Batch]
    held: Feed[Example, Batch] | None
    """What it is evaluated on."""
    described: str
    """For a person."""
    fingerprint: str
    """Of the data, as it was read."""
    samples: int

    @property
    def longest(self) -> int:
        """Tokens of the longest pass."""
        return max(
            int(self.feed.plan.lengths[each].sum())
            for step in range(self.feed.steps())
            for each in self.feed.plan.passes(0, step)
        )


def taken_in(config: TrainConfig, world: int) -> Generator[StepLog, None, Intake]:
    """Read and tokenise what a configuration names.

    :param world: processes that share the steps.
    :raises DataError: if there is nothing that could be learnt.
    :raises UsageError: if no data is named.
    """
    if not config.data:
        raise UsageError("there is nothing to train on; name files with --data")
    data = yield from _said(_opened(config, config.data))
    held: Data | None = None
    if config.eval_data:
        held = yield from _said(_opened(config, config.eval_data))
    elif config.val_size:
        data, held = data.split(config.val_size, seed=config.seed)
    tokens = yield from _said(_encoded(data, config))
    feed = Feed(tokens, _shape(config, world), Batch.of)
    watched = None
    if held is not None:
        own = yield from _said(_encoded(held, config))
        watched = Feed(own, Shape(batch_size=config.batch_size, world=world), Batch.of)
    return Intake(feed, watched, data.described, data.fingerprint, len(tokens))


def _opened(config: TrainConfig, specs: Sequence[str]) -> Generator[Progress, None, Data]:
    """Read data as a configuration says."""
    columns = ColumnNames(
        prompt=config.prompt_column,
        response=config.response_column,
        history=config.history_column,
    )
    return (
        yield from opening(
            specs,
            dataset_dir=config.dataset_dir,
            columns=columns,
            train_on=config.train_on,
            seed=config.seed,
            skip_bad=config.skip_bad,
        )
    )


def _said(work: Generator[Progress, None, ResultT]) -> Generator[StepLog, None, ResultT]:
    """Turn progress into lines of a run that has not begun yet."""
    while True:
        try:
            event = next(work)
        except StopIteration as stop:
            result: ResultT = stop.value
            return result
        of = "" if event.total is None else f" of {event.total:,}"
        yield StepLog(0, 0, note=f"{event.stage}: {event.done:,}{of}")


def _shape(config: TrainConfig, world: int) -> Shape:
    return Shape(
        batch_size=config.batch_size,
        accumulation=config.gradient_accumulation,
        world=world,
        seed=config.seed,
        group_by_length=config.group_by_length,
        pack_to=config.max_length if config.packing else 0,
    )


def _encoded(data: Data, config: TrainConfig) -> Generator[Progress, None, Listed]:
    """Write samples as the model reads them.

    :raises DataError: if nothing of them can be learnt.
    """
    encoder = SampleEncoder.open(
        Path(config.model),
        family=config.family,
        system=config.system,
        max_length=config.max_length,
        overlong=config.overlong,
    )
    rows: list[Example] = []
    reasons: list[str] = []
    samples, done = data.samples(), 0
    while some := list(islice(samples, _AT_ONCE)):
        for found in encoder.encode(some):
            rows += found.rows
            reasons += [found.reason] if found.reason else []
        done += len(some)
        yield Progress("tokenising", done, len(data))
    if not rows:
        raise DataError(
            f"none of the {len(data):,} samples can be learnt: {reasons[0]}; give a larger "
            f"--max-length (now {config.max_length}) or other data"
        )
    return Listed(rows)


_AT_ONCE = 512
