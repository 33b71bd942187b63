"""The `glmkit.json` beside a model: what a conversion knows and config.json has no place for."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ..errors import CheckpointError
from ..texts import is_unicode
from .files import read_json_if_there
from .shapes import shown

FILE = "glmkit.json"
_TEXTS = ("family", "chat_format", "system", "source", "licence")


def read_about(folder: Path) -> dict[str, Any]:
    """Return the table in `glmkit.json`, empty where there is none.

    ``family``, ``chat_format`` and ``system`` are texts, ``languages`` is a list of texts; all are
    valid Unicode.

    :raises CheckpointError: if it is damaged or holds something else.
    """
    table = read_json_if_there(folder / FILE)
    for name in _TEXTS:
        if not _is_text(table.get(name, "")):
            raise CheckpointError(
                f"{folder / FILE}: {name} is {shown(table[name])}; expected a text of valid Unicode"
            )
    spoken = table.get("languages") or []
    if not isinstance(spoken, list) or not all(map(_is_text, spoken)):
        raise CheckpointError(
            f"{folder / FILE}: languages is {shown(spoken)}; expected a list of codes"
        )
    return table


def _is_text(value: object) -> bool:
    return isinstance(value, str) and is_unicode(value)
