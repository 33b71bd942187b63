"""From what a user wrote (flags, ``--set``, a file) to a recipe's config."""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import click

from glmkit import Alias, ConfigError, UsageError

from .aliases import ALIASES, LOOSE, OTHERS, aliases_of, translated
from .settings import Setting, grouped, settings_of

_OWN = {"config_file", "pairs", "as_json", "show_config"}
"""What the command takes beside settings."""


def config_of(
    config_type: type[Any],
    recipe: str,
    *,
    flags: Mapping[str, Any],
    pairs: Iterable[str] = (),
    file: Path | None = None,
) -> Any:  # noqa: ANN401
    """Return a recipe's config: defaults < file < ``--set`` < flags.

    A resumed run takes what is not said from what its folder recorded.

    :param flags: values by setting or alias.
    :param pairs: ``key=value``, as ``--set`` takes them.
    :param file: TOML, YAML or JSON.
    :raises UsageError: if a name is unknown, a value is none of its setting's, or a range is left.
    """
    known = {each.name: each for each in settings_of(config_type)}
    aliases = aliases_of(config_type)
    values: dict[str, Any] = {}
    sources: list[tuple[Mapping[str, Any], str]] = [(_read(file), str(file))] if file else []
    sources += [(_pairs(pairs), "--set"), (flags, "the command line")]
    for given, where in sources:
        plain = {key.replace("-", "_"): value for key, value in given.items()}
        found = translated(plain, set(known), recipe, aliases)
        _refuse_unknown(found, known, aliases, where)
        values |= {
            name: known[name].read(value, f"{name} ({where})") for name, value in found.items()
        }
    if values.get("resume"):
        values = _recorded(values.get("output", known["output"].default), known) | values
    return config_type(**values)


def _recorded(output: str, known: Mapping[str, Setting]) -> dict[str, Any]:
    """Return what the run in a folder was told, as far as it need not be said again."""
    try:
        text = (Path(output).expanduser() / "run.json").read_text(encoding="utf-8")
        found = json.loads(text)["config"]
    except (OSError, ValueError, KeyError, TypeError):
        return {}  # the run itself says what is wrong with its folder
    again = {name: value for name, value in found.items() if name in known and name not in _ANEW}
    return {name: known[name].read(value, f"{name} (run.json)") for name, value in again.items()}


_ANEW = {"resume", "output", "overwrite", "nproc"}
"""Settings that a resumed run does not take over."""


def _refuse_unknown(
    found: Mapping[str, Any], known: Mapping[str, Setting], aliases: Iterable[Alias], where: str
) -> None:
    from glmkit import refuse_unknown

    others = {each.name for each in aliases if not set(each.settings).isdisjoint(known)}
    refuse_unknown(found, {*known, *others, *OTHERS, *LOOSE}, where=where)
    for name in found:
        if name not in known:  # an alias of what this recipe has not
            raise ConfigError(f"unknown key {name!r} in {where}; this recipe has no such setting")


def _pairs(pairs: Iterable[str]) -> dict[str, str]:
    found = {}
    for pair in pairs:
        key, equals, value = pair.partition("=")
        if not equals or not key.strip():
            raise UsageError(f"--set takes key=value, got {pair!r}")
        found[key.strip()] = value.strip()
    return found


def _read(file: Path) -> Mapping[str, Any]:
    """Read a file of settings.

    :raises UsageError: if it is not there, or no flat table.
    """
    try:
        text = file.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"cannot read --config {file}: {error}") from error
    found = _parsed(file, text)
    if not isinstance(found, dict) or any(isinstance(each, dict) for each in found.values()):
        raise UsageError(f"{file} must be one table of settings, key and value, without sub-tables")
    return {str(key): value for key, value in found.items()}


def _parsed(file: Path, text: str) -> object:
    import yaml

    try:
        if file.suffix in (".yaml", ".yml"):
            return yaml.safe_load(text)
        if file.suffix == ".json":
            return json.loads(text)
        if sys.version_info >= (3, 11):
            import tomllib
        else:
            import tomli as tomllib
        return tomllib.loads(text)
    except (ValueError, yaml.YAMLError) as error:
        said = " ".join(str(error).split())
        raise UsageError(f"{file} cannot be read: {said}; mend it as TOML, YAML or JSON") from error


# ---------------------------------------------------------------------------------- click options


class RecipeCommand(click.Command):
    """The command of one recipe: its settings are its flags, in groups.

    :param settings: of the recipe's config.
    :param aliases: other names of them.
    :param params: what it takes beside them.
    """

    def __init__(
        self,
        name: str,
        *,
        settings: list[Setting],
        aliases: Iterable[Alias] = ALIASES,
        params: Iterable[click.Option],
        **kwargs: Any,  # noqa: ANN401
    ) -> None:
        self._settings, self._aliases, self._own = settings, tuple(aliases), list(params)
        options = _options(settings, self._aliases)
        super().__init__(name, params=[*options, *self._own], **kwargs)

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write the flags, group by group."""
        for name, settings in grouped(self._settings):
            with formatter.section(name[0].upper() + name[1:]):
                formatter.write_dl(
                    [(_usage(each), _help(each, self._aliases)) for each in settings]
                )
        rows = [each.get_help_record(ctx) for each in self._own]
        with formatter.section("More"):
            formatter.write_dl([row for row in rows if row] + [("-h, --help", "Show this.")])


def _options(settings: list[Setting], aliases: Iterable[Alias]) -> list[click.Option]:
    """Return an option for each setting, and hidden ones for each name that others give it."""
    found = [_option(each.name, several=each.kind is tuple, switch=_on(each)) for each in settings]
    found += [
        click.Option([f"--no-{each.name}", f"no_{each.name}"], is_flag=True, hidden=True)
        for each in settings
        if each.kind is bool
    ]
    by_name = {each.name: each for each in settings}
    for alias in aliases:
        meant = next((by_name[each] for each in alias.settings if each in by_name), None)
        if not alias.settings:
            found.append(_option(alias.name, several=False, switch=True))
        elif meant is not None and alias.name not in by_name:
            several = meant.kind is tuple
            found.append(_option(alias.name, several=several, switch=alias.switch))
    taken = {each.name for each in found}
    others = [name for name in (*OTHERS, *LOOSE) if name not in taken]
    found += [_option(each, several=False, switch=each in LOOSE) for each in others]
    return found


def _on(setting: Setting) -> bool:
    return setting.kind is bool


def _option(name: str, *, several: bool, switch: bool) -> click.Option:
    """Return an option that passes on what was written; a switch needs nothing behind it."""
    more: dict[str, Any] = {"is_flag": False, "flag_value": "true"} if switch else {}
    return click.Option([f"--{name}", name], multiple=several, type=str, **more)


def normal(name: str) -> str:
    """Return an option's name with dashes, as people write either."""
    return name.replace("_", "-")


def given_of(parsed: Mapping[str, Any]) -> dict[str, Any]:
    """Return the settings among a command's parsed parameters that were given."""
    found = {}
    for name, value in parsed.items():
        if name in _OWN or value is None or value == ():
            continue
        if name.startswith("no_") and name.removeprefix("no_") in parsed:
            if value:
                found[name.removeprefix("no_")] = "false"
            continue
        found[name] = value
    return found


_METAVARS = {str: "TEXT", int: "N", float: "X", bool: "", tuple: "A,B"}


def _usage(setting: Setting) -> str:
    if setting.kind is bool and setting.default:
        return f"{setting.flag} / --no-{setting.name.replace('_', '-')}"
    return f"{setting.flag} {_METAVARS[setting.kind]}".rstrip()


def _help(setting: Setting, aliases: Iterable[Alias]) -> str:
    names = [f"--{each.name}" for each in aliases if setting.name in each.settings[:1]]
    also = f" (also {', '.join(names)})" if names else ""
    return f"{setting.help}{also}{_default(setting)}"


def _default(setting: Setting) -> str:
    value = setting.default
    if (
        value is None
        or value is False
        or value in ((), "")
        or re.search(r"\b[Dd]efault", setting.help)
    ):
        return ""
    shown = ",".join(value) if isinstance(value, tuple) else str(value)
    return f" [{'on' if value is True else shown}]"
