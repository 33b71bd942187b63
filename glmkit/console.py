"""Progress of long work, drawn on standard error with rich."""

from __future__ import annotations

import sys
from collections.abc import Generator
from typing import TYPE_CHECKING, TypeVar

if TYPE_CHECKING:
    from rich.progress import Progress as Bars, TaskID

    from .types import Progress

Result = TypeVar("Result")


def drain(events: Generator[Progress, None, Result]) -> Result:
    """Run long work to its end in silence and return its result."""
    while True:
        try:
            next(events)
        except StopIteration as stop:
            result: Result = stop.value
            return result


def show_progress(events: Generator[Progress, None, Result]) -> Result:
    """Run long work to its end, drawing it on standard error, and return its result.

    On a terminal each stage is a bar that vanishes when the work is done; elsewhere (logs, pipes)
    each stage is one line. Nothing at all is drawn for work that reports nothing.
    """
    if not sys.stderr.isatty():
        return _log(events)
    try:
        first = next(events)
    except StopIteration as stop:
        result: Result = stop.value
        return result
    with _bars() as bars:
        return _draw(bars, first, events)


def _log(events: Generator[Progress, None, Result]) -> Result:
    stage = None
    while True:
        try:
            event = next(events)
        except StopIteration as stop:
            result: Result = stop.value
            return result
        if event.stage != stage:
            stage = event.stage
            sys.stderr.write(f"{stage}{_size(event)}\n")
            sys.stderr.flush()


def _size(event: Progress) -> str:
    if not event.total:
        return ""
    return f" ({_bytes(event.total)})" if event.unit == "bytes" else f" ({event.total})"


def _bytes(count: int) -> str:
    return f"{count / 1e6:.0f} MB" if count >= 1e6 else f"{max(count / 1e3, 1):.0f} kB"


def _bars() -> Bars:
    from rich.console import Console
    from rich.progress import BarColumn, Progress, SpinnerColumn, TextColumn, TimeRemainingColumn

    return Progress(
        SpinnerColumn(),
        TextColumn("{task.description}"),
        BarColumn(),
        TextColumn("{task.fields[amount]}"),
        TimeRemainingColumn(compact=True),
        console=Console(stderr=True),
        transient=True,
    )


def _draw(bars: Bars, event: Progress, events: Generator[Progress, None, Result]) -> Result:
    tasks: dict[str, TaskID] = {}
    while True:
        if event.stage not in tasks:
            tasks[event.stage] = bars.add_task(event.stage, amount="")
        bars.update(
            tasks[event.stage], completed=event.done, total=event.total, amount=_amount(event)
        )
        try:
            event = next(events)
        except StopIteration as stop:
            result: Result = stop.value
            return result


def _amount(event: Progress) -> str:
    if event.unit == "bytes":
        return (
            f"{_bytes(event.done)} of {_bytes(event.total)}" if event.total else _bytes(event.done)
        )
    amount = f"{event.done}/{event.total}" if event.total else str(event.done)
    return f"{amount}, {event.note}" if event.note else amount
