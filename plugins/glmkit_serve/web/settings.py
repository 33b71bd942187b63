"""How the page is served: the table ``[plugins.serve.web]``, overridden by flags."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from glmkit import ConfigError, refuse_unknown

from ..settings import check_range, texts

_TABLE = "[plugins.serve.web]"


@dataclass(frozen=True)
class WebSettings:
    """Where the page is, and how much it takes.

    :raises ConfigError: if a value is out of range; names the key and what is allowed.
    """

    host: str = "127.0.0.1"
    """The address to listen on; any but this machine's own needs a key."""
    port: int = 7860
    """0 takes a free one."""
    hosts: tuple[str, ...] = ()
    """Names that the page may be called beside those of this machine: behind a proxy."""
    feedback: Path | None = None
    """The table of feedback; None: ``feedback.db`` in glmkit's home."""
    uploads: bool = True
    """Whether visitors may add documents."""
    max_file_mb: float = 20.0
    """Largest document, 0.001..1024 megabytes."""
    max_files: int = 50
    """Documents of one knowledge base, 1..10000."""
    max_bases: int = 20
    """Named knowledge bases that visitors may make, 0..1000."""
    max_chars: int = 20_000
    """Longest message, 1..10**6 characters."""
    max_tokens: int = 4096
    """Longest answer that may be asked for, 16..10**6 tokens."""
    concurrency: int = 32
    """Answers that are shown side by side in each language, 1..500; more wait."""
    timeout_s: float = 600.0
    """How long an answer may take, waiting included, 1..86400 seconds."""

    def __post_init__(self) -> None:
        for name, (low, high) in _RANGES.items():
            where = f"{name} in {_TABLE}"
            check_range(where, getattr(self, name), low, high, whole=name in _WHOLE)
        if not isinstance(self.host, str) or not self.host.strip():
            raise ConfigError(f"host in {_TABLE} must be an address, got {self.host!r}")
        if not isinstance(self.uploads, bool):
            raise ConfigError(f"uploads in {_TABLE} must be true or false, got {self.uploads!r}")
        object.__setattr__(self, "hosts", texts(f"hosts in {_TABLE}", self.hosts))
        if self.feedback is not None:
            if not isinstance(self.feedback, (str, Path)) or not str(self.feedback).strip():
                raise ConfigError(f"feedback in {_TABLE} must be a file, got {self.feedback!r}")
            object.__setattr__(self, "feedback", Path(self.feedback).expanduser())

    @classmethod
    def of(cls, table: Mapping[str, Any], **flags: Any) -> WebSettings:  # noqa: ANN401
        """Return the settings of a configuration table, overridden by the flags that are not None.

        :raises ConfigError: if a key is unknown or a value out of range.
        """
        if not isinstance(table, Mapping):
            raise ConfigError(f"{_TABLE} must be a table, got {type(table).__name__}")
        refuse_unknown(table, {each.name for each in fields(cls)}, where=_TABLE)
        given = {key: value for key, value in flags.items() if value is not None}
        return cls(**{**table, **given})

    @property
    def max_bytes(self) -> int:
        """The largest document in bytes."""
        return int(self.max_file_mb * 1_000_000)


_RANGES: Mapping[str, tuple[float, float]] = {
    "port": (0, 65535),
    "max_file_mb": (0.001, 1024),
    "max_files": (1, 10_000),
    "max_bases": (0, 1000),
    "max_chars": (1, 10**6),
    "max_tokens": (16, 10**6),
    "concurrency": (1, 500),
    "timeout_s": (1, 86400),
}
_WHOLE = set(_RANGES) - {"max_file_mb", "timeout_s"}
