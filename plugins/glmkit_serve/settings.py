"""The table ``[plugins.serve]`` of glmkit.toml."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from typing import Any

from glmkit import ConfigError, refuse_unknown

from .limits import Door, is_local, own_names

_TABLES = {"queue", "web"}
"""Tables of the other apps, inside this one; they check them themselves."""


@dataclass(frozen=True)
class Settings:
    """How the server is reached and what holds there, unless a flag says otherwise.

    :raises ConfigError: if a value is out of range; names the key and what is allowed.
    """

    host: str = "127.0.0.1"
    """Address to listen at; any but this machine's own needs a key."""
    port: int = 8000
    """1..65535, or 0 for any that is free."""
    api_keys: tuple[str, ...] = field(default=(), repr=False)
    """Of which clients send one; also GLMKIT_API_KEYS."""
    hosts: tuple[str, ...] = ()
    """Names that the server may be called without a key, beside those of this machine."""
    origins: tuple[str, ...] = ()
    """Pages of other origins that may read answers (CORS), ``https://chat.example.org``."""
    concurrency: int | None = None
    """Answers side by side, 1..4096; None: what suits the model."""
    max_waiting: int = 128
    """Questions that may wait, 0..100000; more are told to come again (429)."""
    max_tokens: int = 4096
    """Most tokens that an answer may be asked for, 1..10**6."""
    max_choices: int = 8
    """Most answers to one request (n), 1..128."""
    max_body_bytes: int = 4 << 20
    """Largest body of a request, 1024..10**9."""
    timeout_s: float = 600.0
    """Longest time from a request to the end of its answer, 0.1..86400."""
    shutdown_s: float = 30.0
    """How long answers may go on after the server was told to stop, 0..3600."""

    def __post_init__(self) -> None:
        for name, (low, high, whole) in _RANGES.items():
            value = getattr(self, name)
            if name != "concurrency" or value is not None:
                check_range(name, value, low, high, whole=whole)
        for name in ("api_keys", "hosts", "origins"):
            object.__setattr__(self, name, texts(name, getattr(self, name)))
        if not isinstance(self.host, str) or not self.host:
            raise ConfigError(f"host must be an address, got {self.host!r}")

    @classmethod
    def of(cls, table: Mapping[str, Any], **flags: Any) -> Settings:  # noqa: ANN401
        """Return the settings of a configuration table, overridden by flags that are not None.

        :raises ConfigError: if a key is unknown or a value out of range.
        """
        known = {each.name for each in fields(cls)}
        refuse_unknown(table, known | _TABLES, where="[plugins.serve]")
        own = {key: value for key, value in table.items() if key in known}
        given = {key: value for key, value in flags.items() if value is not None}
        return cls(**{**own, **given})

    @property
    def door(self) -> Door:
        """Who may come in, and with how much."""
        named = None
        if not self.api_keys and is_local(self.host):
            named = own_names(self.host, self.hosts)
        return Door(self.api_keys, self.max_body_bytes, named, self.origins)


_RANGES: Mapping[str, tuple[float, float, bool]] = {
    "port": (0, 65535, True),
    "concurrency": (1, 4096, True),
    "max_waiting": (0, 100_000, True),
    "max_tokens": (1, 1_000_000, True),
    "max_choices": (1, 128, True),
    "max_body_bytes": (1024, 1_000_000_000, True),
    "timeout_s": (0.1, 86_400, False),
    "shutdown_s": (0, 3600, False),
}


def check_range(name: str, value: object, low: float, high: float, *, whole: bool) -> None:
    """Refuse what is no number of a range.

    :raises ConfigError: naming it and what is allowed.
    """
    kinds = int if whole else (int, float)
    good = isinstance(value, kinds) and not isinstance(value, bool)
    if not good or not low <= float(str(value)) <= high:
        kind = "a whole number" if whole else "a number"
        raise ConfigError(f"{name} must be {kind} from {low:g} to {high:g}, got {value!r}")


def texts(name: str, value: object) -> tuple[str, ...]:
    """Return texts; never says what they are, as keys are among them.

    :raises ConfigError: if it is something else.
    """
    listed = (value,) if isinstance(value, str) else value
    if not isinstance(listed, (list, tuple)):
        raise ConfigError(f"{name} must be a list of texts")
    if not all(isinstance(each, str) and each.strip() == each != "" for each in listed):
        raise ConfigError(f"{name} must be texts that are not empty, without blanks around them")
    if name == "api_keys" and not all("!" <= letter <= "~" for each in listed for letter in each):
        raise ConfigError("an API key has characters that cannot be sent; use plain ASCII")
    return tuple(listed)
