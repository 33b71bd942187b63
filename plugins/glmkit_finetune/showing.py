"""What is shown while a recipe runs: a bar on a terminal, lines elsewhere, or JSON lines."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from contextlib import closing
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    from collections.abc import Generator

    from rich.progress import Progress as Bars

    from glmkit import StepLog


def show(logs: Iterator[StepLog], *, as_json: bool = False) -> None:
    """Run a recipe to its end and show its log."""
    with closing(_closable(logs)) as running:
        if as_json:
            for log in running:
                click.echo(as_line(log))
        elif sys.stderr.isatty():
            _draw(running)
        else:
            for log in running:
                _echo(log)


def _closable(logs: Iterator[StepLog]) -> Generator[StepLog, None, None]:
    yield from logs


def as_line(log: StepLog) -> str:
    """Return a log as one line of JSON, without what it does not say."""
    said: dict[str, Any] = {
        name: value for name, value in asdict(log).items() if value not in (None, "", {})
    }
    return json.dumps(said, ensure_ascii=False)


def _echo(log: StepLog) -> None:
    if log.loss is not None:
        click.echo(f"step {log.step}/{log.total}  {figures(log)}")
    for line in others(log):
        click.echo(line)


def figures(log: StepLog) -> str:
    """Return what a step measured, on one line."""
    parts = [f"loss {log.loss:.4f}" if log.loss is not None else ""]
    parts.append(f"lr {log.learning_rate:.2e}" if log.learning_rate is not None else "")
    parts.append(f"{log.tokens_per_s:.0f} tokens/s" if log.tokens_per_s else "")
    parts.append(f"{lasting(log.seconds_left)} left" if log.seconds_left is not None else "")
    return "  ".join(each for each in parts if each)


def others(log: StepLog) -> Iterator[str]:
    """Yield the lines of what else a log says."""
    if log.metrics:
        said = ", ".join(f"{name} {value:.4g}" for name, value in log.metrics.items())
        yield f"step {log.step}: {said}" if log.loss is None else f"  {said}"
    if log.note:
        yield log.note


def lasting(seconds: float) -> str:
    """Return a time as people read it."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"


def _draw(running: Generator[StepLog, None, None]) -> None:
    """Draw a bar that stays at the bottom; what else happens scrolls by above it."""
    with _bars() as bars:
        task = None
        for log in running:
            for line in others(log):
                bars.console.print(line, highlight=False, markup=False)
            if log.loss is None:
                continue
            if task is None:
                task = bars.add_task("training", total=log.total, figures="")
            bars.update(task, completed=log.step, total=log.total, figures=figures(log))


def _bars() -> Bars:
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn

    return Progress(
        TextColumn("{task.description}"),
        BarColumn(bar_width=24),
        MofNCompleteColumn(),
        TextColumn("{task.fields[figures]}"),
        console=Console(stderr=True),
    )
