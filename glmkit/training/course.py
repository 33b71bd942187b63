"""The course of a run whose learner is ready: where it begins, and the files that it leaves."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from ..errors import UsageError
from ..recipes import StepLog
from .checkpoint import outer
from .config import RunConfig
from .folder import cut_log, read, write
from .loop import Work, learn, log, restore
from .recording import Record, trackers_of


def begin(work: Work) -> None:
    """Go on from a checkpoint or an adapter, where that is asked for. All processes call it.

    :raises CheckpointError: if it is damaged, or of another training.
    """
    config, checkpoints = work.config, work.checkpoints
    last = checkpoints.last() if config.resume else None
    if last is not None:
        restore(work, last)
    elif config.init_adapter is not None:
        adapter = Path(config.init_adapter).expanduser()
        work.crew.set_trained(work.learner, outer(checkpoints.kept.load(adapter)))
    if config.resume and work.crew.rank == 0:
        cut_log(checkpoints.folder, work.state.global_step)


def follow(
    work: Work,
    base: Path,
    *,
    drawn: Sequence[str],
    unit: str,
    card: Callable[[Mapping[str, float]], object],
) -> Iterator[StepLog]:
    """Train, keep the figures, leave the result at the top of the folder. All processes call it.

    :param base: the folder of the model.
    :param drawn: figures that the picture of the run shows.
    :param unit: what the loss is counted in.
    :param card: writes the model card, given what the run came to.
    """
    if work.crew.rank:
        yield from learn(work)
        _publish(work)
        return
    folder, history = work.checkpoints.folder, work.state.log_history
    trackers = trackers_of(work.config.report_to, folder, _plain(work.config))
    record = Record(folder, trackers, history, drawn=drawn)
    yield from record.keep(learn(work))
    _publish(work)
    record.draw(f"{folder.absolute().name}: {base.name}", unit)
    work.state.write(folder)
    card(_figures(work))
    yield log(work, note=f"done: {folder} holds the result")


def trained_share(work: Work, parameters: int = 0) -> str:
    """Say how much of the model is trained.

    :param parameters: numbers that the model's matrices hold, where not all are parameters.
    :raises UsageError: if nothing is.
    """
    sizes = [(_size(each), each.requires_grad) for each in work.learner.parameters()]
    trained = sum(size for size, learns in sizes if learns)
    if not trained:
        raise UsageError("nothing of the model is trained; check the recipe's settings")
    # Rounded weights are no parameters.
    share = trained / max(sum(size for size, _ in sizes), parameters)
    digits = max(0, 1 - math.floor(math.log10(100 * share)))
    said = f"{trained:,} parameters are trained, {100 * share:.{digits}f}% of all"
    return f"{said}; {work.total:,} steps"


def _size(parameter: torch.Tensor) -> int:
    """Return how many numbers a parameter has, which may be away (DeepSpeed ZeRO-3)."""
    return int(getattr(parameter, "ds_numel", parameter.numel()))


def _publish(work: Work) -> None:
    """Write the result at the top of the folder: the best, where one was looked for."""
    state, checkpoints = work.state, work.checkpoints
    best = checkpoints.at(state.best_step)
    if work.config.early_stopping and state.best_step != state.global_step and best.is_dir():
        work.crew.set_trained(work.learner, checkpoints.trained(best))
    trained = work.crew.trained(work.learner)
    if work.crew.rank == 0:
        files = checkpoints.publish(trained)
        write(checkpoints.folder, read(checkpoints.folder) | {"files": files})
    work.crew.wait()


def _figures(work: Work) -> dict[str, float]:
    """Return the last loss, and the last of an evaluation."""
    found: dict[str, float] = {"steps": work.state.global_step}
    for line in work.state.log_history:
        found |= {name: line[name] for name in ("loss", "eval_loss") if name in line}
    return found


def _plain(config: RunConfig) -> dict[str, Any]:
    """Return settings as trackers take them: numbers and texts."""
    plain = {}
    for name in config.__dataclass_fields__:
        value = getattr(config, name)
        plain[name] = value if isinstance(value, (int, float, str, bool)) else str(value)
    return plain
