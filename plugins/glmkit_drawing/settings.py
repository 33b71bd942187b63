"""The table ``[plugins.drawing]`` of glmkit.toml, and what the commands read from their flags."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from glmkit import ConfigError, UsageError, refuse_unknown


@dataclass(frozen=True)
class Settings:
    """How the drawing plugin draws, unless a flag says otherwise."""

    image_model: str | None = None
    """Name, hub id or folder of what draws; None: the embedded picture model."""
    out: str = "pictures"
    """Folder that pictures are written to."""

    def __post_init__(self) -> None:
        """Check every value.

        :raises ConfigError: if one is no text.
        """
        for each in fields(self):
            value = getattr(self, each.name)
            if not (isinstance(value, str) and value) and (value, each.default) != (None, None):
                raise ConfigError(
                    f"{each.name} in [plugins.drawing] must be a text that is not empty, "
                    f"got {value!r}"
                )

    @classmethod
    def of(cls, table: Mapping[str, Any]) -> Settings:
        """Read the table.

        :raises ConfigError: if a key is unknown or a value is no text.
        """
        refuse_unknown(table, {each.name for each in fields(cls)}, where="[plugins.drawing]")
        return cls(**table)


_NUMBER = re.compile(r"[+-]?(\d+\.?\d*|\.\d+)(e[+-]?\d+)?", re.IGNORECASE)


def lora_of(text: str) -> tuple[Path, float]:
    """Read ``PATH`` or ``PATH:WEIGHT``; the colon of a Windows drive is none of a weight.

    :raises UsageError: if there is no path, or the weight is no number.
    """
    path, colon, weight = text.rpartition(":")
    if not colon or Path(text).exists() or re.match(r"[\\/]", weight):
        path, weight = text, "1"
    if not path or not _NUMBER.fullmatch(weight) or not math.isfinite(float(weight)):
        raise UsageError(
            f"a LoRA is PATH or PATH:WEIGHT, such as style.safetensors:0.7, got {text!r}"
        )
    return Path(path), float(weight)


def size_of(text: str) -> tuple[int, int]:
    """Read ``WIDTHxHEIGHT``, or one number for a square.

    :raises UsageError: if it is neither.
    """
    found = re.fullmatch(r"(\d{1,5})(?:[x×*,](\d{1,5}))?", text.strip().lower())
    if found is None:
        raise UsageError(f"a size is WIDTHxHEIGHT in pixels, such as 512x768, got {text!r}")
    return int(found[1]), int(found[2] or found[1])
