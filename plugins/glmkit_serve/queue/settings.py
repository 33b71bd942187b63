"""How the queue answers: the table ``[plugins.serve.queue]``, overridden by flags."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from typing import Any

from glmkit import ConfigError, refuse_unknown

TABLE = "glmkit_questions"
_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]{0,39}")


@dataclass(frozen=True)
class QueueSettings:
    """Where the queue is and what holds in it.

    :raises ConfigError: if a value is out of range; names the key and what is allowed.
    """

    db: str | None = field(default=None, repr=False)
    """The database: ``sqlite:///questions.db``, ``postgresql://...``, ``mysql://...``."""
    table: str = TABLE
    """The table with the questions."""
    history: int = 10
    """Earlier turns of a session that the model sees, 0..1000."""
    system: str | None = None
    """The system message before each conversation."""
    slots: int = 8
    """Questions that a worker answers side by side, 1..1024."""
    lease_s: float = 30.0
    """How long a question stays with a worker that gives no sign of life, 0.5..86400 seconds."""
    max_attempts: int = 5
    """Times that a question is tried before it is put aside as dead, 1..1000."""
    backoff_s: float = 2.0
    """Pause before the second attempt, 0..3600 seconds; it doubles with each."""
    unserved_s: float = 3600.0
    """How long a question may wait for a model that no worker has, 1..10**9 seconds."""
    max_waiting: int = 10_000
    """Questions that may wait; more are refused, 1..10**9."""
    max_chars: int = 100_000
    """Longest question, 1..10**7 characters."""
    poll_s: float = 0.25
    """Pause between two looks for new questions, 0.01..60 seconds."""
    stream_s: float = 0.3
    """Pause between two writes of what has been answered so far, 0.01..60 seconds."""
    stop_s: float = 10.0
    """How long answers may go on when the worker is told to stop, 0..3600 seconds."""
    keep_days: float | None = None
    """Days after which settled questions are removed, above 0; None keeps them."""

    def __post_init__(self) -> None:
        for name, (low, high) in _RANGES.items():
            _check(name, getattr(self, name), low, high, whole=name in _WHOLE)
        if self.keep_days is not None:
            _check("keep_days", self.keep_days, 1e-6, 1e6, whole=False)
        if not isinstance(self.table, str) or not _NAME.fullmatch(self.table):
            raise ConfigError(
                f"table must be letters, digits and underscores, 40 at most, got {self.table!r}"
            )
        for name in ("db", "system"):
            value = getattr(self, name)
            if value is not None and not isinstance(value, str):
                raise ConfigError(f"{name} must be a text, got {type(value).__name__}")

    @classmethod
    def of(cls, table: Mapping[str, Any], /, **flags: Any) -> QueueSettings:  # noqa: ANN401
        """Return the settings of a configuration table, overridden by the flags that are not None.

        :raises ConfigError: if a key is unknown or a value out of range.
        """
        if not isinstance(table, Mapping):
            raise ConfigError(f"[plugins.serve.queue] must be a table, got {type(table).__name__}")
        refuse_unknown(table, {each.name for each in fields(cls)}, where="[plugins.serve.queue]")
        given = {key: value for key, value in flags.items() if value is not None}
        return cls(**{**table, **given})


_RANGES: Mapping[str, tuple[float, float]] = {
    "history": (0, 1000),
    "slots": (1, 1024),
    "lease_s": (0.5, 86400),
    "max_attempts": (1, 1000),
    "backoff_s": (0, 3600),
    "unserved_s": (1, 10**9),
    "max_waiting": (1, 10**9),
    "max_chars": (1, 10**7),
    "poll_s": (0.01, 60),
    "stream_s": (0.01, 60),
    "stop_s": (0, 3600),
}
_WHOLE = frozenset(("history", "slots", "max_attempts", "max_waiting", "max_chars"))


def _check(name: str, value: object, low: float, high: float, *, whole: bool) -> None:
    kinds = (int,) if whole else (int, float)
    number = isinstance(value, kinds) and not isinstance(value, bool)
    if not number or not low <= value <= high:  # type: ignore[operator]
        kind = "a whole number" if whole else "a number"
        raise ConfigError(f"{name} must be {kind} from {low:g} to {high:g}, got {value!r}")
