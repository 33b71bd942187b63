"""Data on its way into a run: read, split, tokenised, planned."""

from __future__ import annotations

from collections.abc import Generator, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import TypeVar

from ..dataset.columns import ColumnNames
from ..dataset.data import Data, opening
from ..dataset.samples import Sample
from ..dataset.specs import is_saved
from ..errors import UsageError
from ..models.layouts import read_model
from ..recipes import StepLog
from ..runtime.loading import physical_cores
from ..types import Progress
from .batches import Batch, Feed
from .config import TrainConfig
from .evaluating import EvalFeed
from .loop import Feed as Steps
from .plan import Plan, Shape
from .saved import SavedData, reading_saved
from .tokens import Reading, Samples, Tokens, tokenizing

ResultT = TypeVar("ResultT")
TOKENS = ".tokens"
"""Below the run folder: tokens that are kept nowhere else."""


@dataclass(frozen=True)
class Intake:
    """What a run learns from."""

    feed: Steps
    longest: int
    """Tokens of the longest pass."""
    held: EvalFeed | None
    """What it is evaluated on."""
    described: str
    """For a person."""
    fingerprint: str
    """Of the data, as it was read."""
    samples: int
    questions: Data | None = None
    """What ``held`` is made of."""

    def asked(self, count: int) -> list[Sample]:
        """Return the first samples of what it is evaluated on."""
        return [] if self.questions is None else list(islice(self.questions.samples(), count))


def taken_in(config: TrainConfig, world: int) -> Generator[StepLog, None, Intake]:
    """Read and tokenise what a configuration names.

    :param world: processes that share the steps.
    :raises DataError: if there is nothing that could be learnt.
    :raises UsageError: if no data is named.
    """
    if not config.data:
        raise UsageError("there is nothing to train on; name files with --data")
    data = yield from reported(_opened(config, config.data))
    held: Data | SavedData | None = None
    if config.eval_data:
        held = yield from reported(_opened(config, config.eval_data))
    elif config.val_size:
        if isinstance(data, SavedData):
            raise UsageError(
                "val_size keeps samples, which tokenised data has none of; name --eval-data"
            )
        data, held = data.split(config.val_size, seed=config.seed)
    tokens = yield from reported(_tokens(data, config))
    feed = Feed(tokens, shape_of(config, world), Batch.of)
    watched = None
    if held is not None:
        own = yield from reported(_tokens(held, config))
        watched = Feed(own, Shape(batch_size=config.batch_size, world=world), Batch.of)
    said = _described(data, tokens, feed.plan)
    questions = held if isinstance(held, Data) else None
    longest = feed.plan.longest
    return Intake(feed, longest, watched, said, data.fingerprint, len(tokens), questions)


def _opened(
    config: TrainConfig, specs: Sequence[str]
) -> Generator[Progress, None, Data | SavedData]:
    """Read data as a configuration says."""
    if any(is_saved(Path(each)) for each in specs):
        if len(specs) > 1:
            raise UsageError("tokenised data is not mixed with other data; name one folder alone")
        if config.train_on != "all":
            raise UsageError(
                f"train_on {config.train_on!r} chooses answers, and tokenised data says itself "
                "what is learnt; leave it out"
            )
        return SavedData(Path(specs[0]))
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


def reported(work: Generator[Progress, None, ResultT]) -> Generator[StepLog, None, ResultT]:
    """Turn progress into lines of a run that has not begun yet."""
    while True:
        try:
            event = next(work)
        except StopIteration as stop:
            result: ResultT = stop.value
            return result
        of = "" if event.total is None else f" of {event.total:,}"
        yield StepLog(0, 0, note=f"{event.stage}: {event.done:,}{of}")


def shape_of(config: TrainConfig, world: int) -> Shape:
    """Return how a configuration parts its data among so many processes."""
    return Shape(
        batch_size=config.batch_size,
        accumulation=config.gradient_accumulation,
        world=world,
        seed=config.seed,
        group_by_length=config.group_by_length,
        pack_to=config.max_length if config.packing else 0,
    )


def _tokens(data: Data | SavedData, config: TrainConfig) -> Generator[Progress, None, Tokens]:
    if not isinstance(data, SavedData):
        return (yield from tokens_of(data, config))
    return (
        yield from reading_saved(
            data,
            cache=_cache_of(config),
            vocab_size=read_model(Path(config.model), config.family).config.vocab_size,
            max_length=config.max_length,
            overlong=config.overlong,
        )
    )


def tokens_of(data: Samples, config: TrainConfig) -> Generator[Progress, None, Tokens]:
    """Make tokens of conversations, as a configuration says, or find those made before."""
    reading = Reading(
        Path(config.model),
        family=config.family,
        system=config.system,
        max_length=config.max_length,
        overlong=config.overlong,
    )
    processes = config.workers or physical_cores()
    return (yield from tokenizing(data, reading, cache=_cache_of(config), processes=processes))


def _cache_of(config: TrainConfig) -> Path:
    return Path(config.cache) if config.cache else Path(config.output) / TOKENS


def _described(data: Data | SavedData, tokens: Tokens, plan: Plan) -> str:
    """Say what is learnt from, a line for each file and one for its tokens."""
    said = f"{tokens.tally}; {int(tokens.lengths.sum()):,} tokens in {len(tokens):,} rows"
    if plan.shape.pack_to:
        said += f", packed into {plan.rows:,} that are {100 * plan.fill:.0f}% full"
    return f"{data.described}\n{said}"
