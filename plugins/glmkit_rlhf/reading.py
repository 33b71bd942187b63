"""What people think of answers, read as a configuration says: pairs of answers, or verdicts."""

from __future__ import annotations

from collections.abc import Generator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from glmkit import Progress, StepLog, UsageError
from glmkit.dataset import Data, opening
from glmkit.dataset.samples import Kind
from glmkit.dataset.specs import is_saved
from glmkit.training.intake import reported

if TYPE_CHECKING:
    from .opinions import OpinionConfig


def opened(
    config: OpinionConfig, kind: Kind, *, ranked: str = "all"
) -> Generator[StepLog, None, tuple[Data, Data | None]]:
    """Return what is learnt from, and what is kept for evaluation, if anything is.

    :param kind: what is wanted.
    :param ranked: which pairs ranked answers make.
    :raises DataError: if it cannot be read, or is of another kind.
    :raises UsageError: if no data is named.
    """
    if not config.data:
        raise UsageError("there is nothing to learn from; name files with --data")
    data = yield from reported(_opened(config, config.data, kind, ranked))
    if config.eval_data:
        return data, (yield from reported(_opened(config, config.eval_data, kind, ranked)))
    return data.split(config.val_size, seed=config.seed) if config.val_size else (data, None)


def _opened(
    config: OpinionConfig, specs: Sequence[str], kind: Kind, ranked: str
) -> Generator[Progress, None, Data]:
    if any(is_saved(Path(each)) for each in specs):
        raise UsageError(f"tokenised data holds no {kind}; name the files that it was made of")
    return (
        yield from opening(
            specs,
            dataset_dir=config.dataset_dir,
            columns=config.columns,
            seed=config.seed,
            skip_bad=config.skip_bad,
            kind=kind,
            ranked=ranked,
        )
    )
