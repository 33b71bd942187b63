"""The `glmkit.json` beside a model: what a conversion knows and config.json has no place for."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ..errors import CheckpointError
from .files import read_json_if_there

FILE = "glmkit.json"
_TEXTS = ("family", "chat_format", "system", "source", "licence")


def read_about(folder: Path) -> dict[str, Any]:
    """Return the table in `glmkit.json`, empty where there is none.

    ``family``, ``chat_format`` and ``system`` are texts, ``languages`` is a list of texts.

    :raises CheckpointError: if it is damaged or holds something else.
    """
    table = read_json_if_there(folder / FILE)
    for name in _TEXTS:
        if not isinstance(table.get(name, ""), str):
            raise CheckpointError(f"{folder / FILE}: {name} is {table[name]!r}; expected a text")
    spoken = table.get("languages") or []
    if not isinstance(spoken, list) or not all(isinstance(each, str) for each in spoken):
        raise CheckpointError(f"{folder / FILE}: languages is {spoken!r}; expected a list of codes")
    return table
