"""Options that say where data is and what its columns hold."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import click

from glmkit.dataset import ColumnNames

Command = TypeVar("Command", bound=Callable[..., Any])

_COLUMNS = {
    "prompt": "Column of the questions, where it is not detected.",
    "query": "Column of what follows the question, as alpaca's input does.",
    "response": "Column of the answers.",
    "history": "Column of earlier turns: [[question, answer], ...].",
    "system": "Column of the system message.",
    "messages": "Column of whole conversations.",
    "tools": "Column of the tools that are offered.",
    "chosen": "Column of the better answer, of preference data.",
    "rejected": "Column of the worse answer.",
    "label": "Column of verdicts: true for a good answer, or false (KTO).",
}


def reading_options(command: Command) -> Command:
    """Add the options that say where data is and what its columns hold."""
    for name, text in reversed(_COLUMNS.items()):
        command = click.option(f"--{name}-column", help=text)(command)
    folder = click.Path(path_type=Path, file_okay=False)
    return click.option("--dataset-dir", type=folder, help="Folder of dataset_info.json.")(command)


def reading_of(options: dict[str, Any]) -> dict[str, Any]:
    """Take the options of :func:`reading_options` out of all, as arguments of the library."""
    columns = ColumnNames(**{name: options.pop(f"{name}_column") for name in _COLUMNS})
    return {"columns": columns, "dataset_dir": options.pop("dataset_dir")}
