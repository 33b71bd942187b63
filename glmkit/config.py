"""Configuration: defaults < ``glmkit.toml`` < environment < flags, merged once.

This is the only module that reads the environment, or writes to it.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from types import MappingProxyType
from typing import Any

from .errors import ConfigError, UsageError, nearest
from .servers import Server
from .types import GenerationOptions

FILE_NAME = "glmkit.toml"
_EMPTY: Mapping[str, Any] = MappingProxyType({})


def _text(value: object) -> str:
    if not isinstance(value, str) or not value.strip():
        raise ValueError("a non-empty text")
    return value.strip()


def _flag(value: object) -> bool:
    """Read a switch the way Hugging Face's variables are read: 1, true, yes, on."""
    if isinstance(value, bool):
        return value
    text = str(value).strip().lower()
    if text in {"1", "true", "yes", "on"}:
        return True
    if text in {"", "0", "false", "no", "off"}:
        return False
    raise ValueError("true or false (1, yes, on / 0, no, off)")


def _path(value: object) -> Path:
    path = value if isinstance(value, Path) else Path(_text(value))
    try:
        return path.expanduser().absolute()
    except RuntimeError as error:  # the home folder of somebody who is not there
        raise ValueError("a path that exists for this user") from error


def _names(value: object) -> tuple[str, ...]:
    parts = value.split(",") if isinstance(value, str) else value
    if not isinstance(parts, (list, tuple)) or not all(isinstance(each, str) for each in parts):
        raise ValueError("names, as a list or separated by commas")
    return tuple(each.strip() for each in parts if each.strip())


@dataclass(frozen=True)
class Setting:
    """One key: where it may come from and how its value is read."""

    read: Callable[[object], Any]
    environment: tuple[str, ...] = ()
    """Variables that set it, the first one set wins."""
    in_file: bool = True


SETTINGS: Mapping[str, Setting] = MappingProxyType(
    {
        "home": Setting(_path, ("GLMKIT_HOME",)),
        "model": Setting(_text, ("GLMKIT_MODEL",)),
        "family": Setting(_text, ("GLMKIT_FAMILY",)),
        "encoder": Setting(_text, ("GLMKIT_ENCODER",)),
        "engine": Setting(_text, ("GLMKIT_ENGINE",)),
        "device": Setting(_text, ("GLMKIT_DEVICE",)),
        "max_memory": Setting(_text, ("GLMKIT_MAX_MEMORY",)),
        "offline": Setting(_flag, ("GLMKIT_OFFLINE", "HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE")),
        "plugins_allowed": Setting(_names, ("GLMKIT_PLUGINS",)),
        "use_modelscope": Setting(_flag, ("USE_MODELSCOPE_HUB", "FASTCHAT_USE_MODELSCOPE")),
        "hf_endpoint": Setting(_text, ("HF_ENDPOINT",)),
        "hf_token": Setting(_text, ("HF_TOKEN",), in_file=False),
        "modelscope_endpoint": Setting(_text, ("MODELSCOPE_ENDPOINT",)),
        "ray_address": Setting(_text, ("RAY_ADDRESS",)),
        "api_keys": Setting(_names, ("GLMKIT_API_KEYS",), in_file=False),
    }
)


def _default_home() -> Path:
    base = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    return Path(base).expanduser().absolute() / "glmkit"


@dataclass(frozen=True)
class Config:
    """What glmkit was asked to be. Frozen: one run, one configuration."""

    home: Path = field(default_factory=_default_home)
    """Where pulled models and indexes live."""
    model: str = "default"
    family: str | None = None
    """What ``model`` is (``chatglm2``, ``chatglm3``, ...); None: as its files say."""
    encoder: str = "default"
    engine: str | None = None
    """What runs the model: ``local``, ``transformers``, ``ray``, ``openai``; None: what suits."""
    device: str | None = None
    """``auto``, ``cpu``, ``cuda:1``, ``mps``, ``cuda:0,cuda:1``; None picks the best here."""
    max_memory: str | None = None
    """Most that a model may take, ``0=10GiB,cpu=30GiB``; None: what is free."""
    offline: bool = False
    """Never open a network connection."""
    plugins_allowed: tuple[str, ...] | None = None
    """Load only these plugins; None loads all, an empty tuple none."""
    use_modelscope: bool = False
    hf_endpoint: str | None = None
    hf_token: str | None = field(default=None, repr=False)
    modelscope_endpoint: str | None = None
    ray_address: str = "local"
    """The cluster of the ray engine: ``local``, ``auto`` or ``HOST:PORT``."""
    openai: Server = Server()
    """The server of the openai engine: the ``[openai]`` table, OPENAI_BASE_URL, OPENAI_API_KEY."""
    api_keys: tuple[str, ...] = field(default=(), repr=False)
    """What clients of a server of our own have to send, beside those in its own table."""
    generation: GenerationOptions = GenerationOptions()
    plugins: Mapping[str, Mapping[str, Any]] = field(default_factory=lambda: _EMPTY, repr=False)
    """The ``[plugins.<name>]`` tables, checked by the plugins themselves."""

    @property
    def first_device(self) -> str | None:
        """The first of several devices, for what runs on one; None picks."""
        first = (self.device or "auto").partition(",")[0].strip()
        return None if first == "auto" else first

    @classmethod
    def load(
        cls,
        file: Path | None = None,
        *,
        environment: Mapping[str, str] | None = None,
        flags: Mapping[str, Any] = _EMPTY,
    ) -> Config:
        """Merge defaults, file, environment and flags.

        :param file: the file to read; without it ``GLMKIT_CONFIG`` or ``./glmkit.toml``, if there.
        :param environment: variables to read instead of the process's own.
        :param flags: values given on the command line; None means not given.
        :raises ConfigError: if a key is unknown or a value is out of range.
        """
        environment = os.environ if environment is None else environment
        table = _read_file(file, environment)
        values: dict[str, Any] = {
            "generation": _generation(table.pop("generation", {})),
            "openai": _server(table.pop("openai", {}), environment),
            "plugins": _plugin_tables(table.pop("plugins", {})),
        }
        values |= {key: _parse(key, value, f"key {key!r}") for key, value in table.items()}
        values |= _from_environment(environment)
        values |= {
            key: _parse(key, value, f"option --{key.replace('_', '-')}")
            for key, value in flags.items()
            if value is not None
        }
        return cls(**values)

    def portable(self) -> dict[str, Any]:
        """Return what another machine needs to find and load the same models: no engine, no key."""
        plain = {name: getattr(self, name) for name in _PORTABLE}
        return plain | {"plugins": {name: dict(table) for name, table in self.plugins.items()}}


_PORTABLE = ("home", "model", "family", "max_memory", "offline", "plugins_allowed")


def _read_file(file: Path | None, environment: Mapping[str, str]) -> dict[str, Any]:
    named = file or (
        Path(environment["GLMKIT_CONFIG"]) if environment.get("GLMKIT_CONFIG") else None
    )
    path = (named or Path(FILE_NAME)).expanduser()
    if not path.is_file():
        if named:
            raise ConfigError(f"no configuration file {str(path)!r}; create it or drop --config")
        return {}
    if sys.version_info >= (3, 11):
        import tomllib
    else:
        import tomli as tomllib
    try:
        table = tomllib.loads(path.read_text(encoding="utf-8"))
    except (tomllib.TOMLDecodeError, UnicodeDecodeError, OSError) as error:
        raise ConfigError(
            f"cannot read {str(path)!r}: {error}; mend it as TOML in UTF-8"
        ) from error
    known = {key for key, setting in SETTINGS.items() if setting.in_file} | {
        "generation",
        "openai",
        "plugins",
    }
    refuse_unknown(table, known, where=str(path))
    return dict(table)


def tell_library(name: str, value: str) -> None:
    """Set a variable of the environment, for a library that can be told in no other way."""
    os.environ[name] = value


def refuse_unknown(table: Mapping[str, Any], known: set[str], *, where: str) -> None:
    """Refuse keys that nobody reads, naming the nearest known one.

    :raises ConfigError: if ``table`` has a key outside ``known``.
    """
    for key in table:
        if key in known:
            continue
        close = nearest(key, known, limit=1)
        said = f"did you mean {close[0]!r}?" if close else "known: " + ", ".join(sorted(known))
        raise ConfigError(f"unknown key {key!r} in {where}; {said}")


def _parse(key: str, value: object, where: str) -> Any:  # noqa: ANN401
    try:
        return SETTINGS[key].read(value)
    except ValueError as error:
        raise ConfigError(f"{where} must be {error}, got {value!r}") from error


def _from_environment(environment: Mapping[str, str]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for key, setting in SETTINGS.items():
        # Set but empty counts as not set, as for the Hugging Face variables; only an allow-list
        # of plugins may be empty on purpose.
        names = [name for name in setting.environment if environment.get(name)]
        if key == "plugins_allowed":
            names = [name for name in setting.environment if name in environment]
        if names:
            found[key] = _parse(key, environment[names[0]], f"variable {names[0]}")
    return found


def _generation(table: object) -> GenerationOptions:
    if not isinstance(table, dict):
        raise ConfigError(f"[generation] must be a table, got {table!r}")
    refuse_unknown(table, {each.name for each in fields(GenerationOptions)}, where="[generation]")
    try:
        return GenerationOptions(**table)
    except (TypeError, UsageError) as error:
        raise ConfigError(f"[generation]: {error}") from error


_SERVER_VARIABLES = {"base_url": "OPENAI_BASE_URL", "api_key": "OPENAI_API_KEY"}


def _server(table: object, environment: Mapping[str, str]) -> Server:
    """Read the ``[openai]`` table; the key comes from the environment alone."""
    if not isinstance(table, dict):
        raise ConfigError("[openai] must be a table")
    known = {each.name for each in fields(Server)} - {"api_key"}
    if "api_key" in table:
        raise ConfigError("[openai] holds no api_key, as files are shared; set OPENAI_API_KEY")
    refuse_unknown(table, known, where="[openai]")
    said = {name: environment.get(key, "").strip() for name, key in _SERVER_VARIABLES.items()}
    try:
        return Server(**{**table, **{name: each for name, each in said.items() if each}})
    except UsageError as error:
        raise ConfigError(f"[openai], OPENAI_BASE_URL or OPENAI_API_KEY: {error}") from error


def _plugin_tables(tables: object) -> Mapping[str, Mapping[str, Any]]:
    if not isinstance(tables, dict) or not all(isinstance(each, dict) for each in tables.values()):
        raise ConfigError(f"[plugins] must hold one table per plugin, got {tables!r}")
    return MappingProxyType({name: MappingProxyType(table) for name, table in tables.items()})
