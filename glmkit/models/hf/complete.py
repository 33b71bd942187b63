"""Whether a folder held all that its model needs: transformers would begin the rest at random."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from ...errors import CheckpointError
from ..files import read_json_if_there

_PREFIX = "transformer.prefix_encoder."


def unchecked(folder: Path) -> None:
    """Look at nothing."""


def is_usual(options: Mapping[str, Any]) -> bool:
    """Tell whether ``from_pretrained`` shall take the weights that a folder has first."""
    elsewhere = ("state_dict", "variant", "gguf_file")
    given = any(options.get(each) is not None for each in elsewhere)
    return not given and options.get("use_safetensors") is not False


def beginnings(folder: Path | None, prefix: int | None) -> tuple[str, ...]:
    """Return how the names of a prefix start, if it may be begun anew.

    It may where the caller asked for one, and not where config.json promises it.

    :param folder: None: not on this disk.
    :param prefix: how long the model's prefix is.
    """
    promised = read_json_if_there(folder / "config.json").get("pre_seq_len") if folder else None
    return () if promised == prefix else (_PREFIX,)


def refuse_missing(path: object, missing: Iterable[str], begun: tuple[str, ...]) -> None:
    """Refuse to go on with tensors that no file had.

    :param path: what was loaded, for the message.
    :param begun: how the names of tensors start that may be begun anew.
    :raises CheckpointError: naming one of the others.
    """
    lost = sorted(each for each in missing if not each.startswith(begun))
    if lost:
        raise CheckpointError(
            f"{path} lacks {len(lost)} tensors that its model needs, such as {lost[0]}; "
            f"{_remedy(lost)}"
        )


def _remedy(lost: list[str]) -> str:
    if all(each.startswith(_PREFIX) for each in lost):
        return (
            "config.json promises a prefix (pre_seq_len) that is not there: take the model's own "
            "config.json, and begin a prefix with from_pretrained(path, pre_seq_len=...)"
        )
    return "the weights are incomplete or belong to another model than config.json"
