"""The table ``[plugins.knowledge]`` of glmkit.toml."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from glmkit import ConfigError, refuse_unknown

from .calibrate import THRESHOLD

ANSWERS = ("auto", "generate", "extract")
POLICIES = ("refuse", "fallback")


@dataclass(frozen=True)
class Settings:
    """How the knowledge plugin answers, unless a flag says otherwise."""

    top_k: int = 5
    """Most passages offered as evidence, 1..50."""
    threshold: float = THRESHOLD
    """Least probability of a passage to count as evidence, 0..1."""
    answer: str = "auto"
    """``auto``, ``generate`` or ``extract``."""
    when_missing: str = "refuse"
    """``refuse``, or ``fallback``: let the model answer without the knowledge base."""
    log_unanswered: Path | None = None
    """File to which refused questions are appended, one JSON object a line."""

    def __post_init__(self) -> None:
        """Check every value.

        :raises ConfigError: if one is out of range; names the key and what is allowed.
        """
        _whole("top_k", self.top_k, 1, 50)
        _share("threshold", self.threshold)
        _choice("answer", self.answer, ANSWERS)
        _choice("when_missing", self.when_missing, POLICIES)
        if isinstance(self.log_unanswered, str):
            object.__setattr__(self, "log_unanswered", Path(self.log_unanswered).expanduser())
        elif not isinstance(self.log_unanswered, (Path, type(None))):
            raise ConfigError(f"log_unanswered must be a file name, got {self.log_unanswered!r}")

    @classmethod
    def of(cls, table: Mapping[str, Any], **flags: Any) -> Settings:  # noqa: ANN401
        """Return the settings of a configuration table, overridden by the flags that are not None.

        :raises ConfigError: if a key is unknown or a value out of range.
        """
        known = {field.name for field in fields(cls)}
        refuse_unknown(table, known, where="[plugins.knowledge]")
        given = {key: value for key, value in flags.items() if value is not None}
        return cls(**{**table, **given})


def _whole(name: str, value: object, low: int, high: int) -> None:
    if not isinstance(value, int) or isinstance(value, bool) or not low <= value <= high:
        raise ConfigError(f"{name} must be a whole number from {low} to {high}, got {value!r}")


def _share(name: str, value: object) -> None:
    number = isinstance(value, (int, float)) and not isinstance(value, bool)
    if not number or not 0 <= value <= 1:  # type: ignore[operator]
        raise ConfigError(f"{name} must be from 0 to 1, got {value!r}")


def _choice(name: str, value: object, allowed: tuple[str, ...]) -> None:
    if value not in allowed:
        raise ConfigError(f"{name} must be one of {', '.join(allowed)}, got {value!r}")
