"""``glmkit plugins``: which plugins there are, what they hook into, and what is wrong with them."""

from __future__ import annotations

import json
from collections.abc import Iterator
from importlib.metadata import EntryPoint, PackageNotFoundError, version
from typing import TYPE_CHECKING, Any

import click

from ..errors import UnknownNameError

if TYPE_CHECKING:
    from ..app import Glmkit
    from ..plugins import PluginInfo, Registry


@click.group()
def plugins() -> None:
    """List, inspect and check plugins."""


@plugins.command("list")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON array.")
@click.pass_obj
def list_plugins(app: Glmkit, as_json: bool) -> None:
    """List the plugins: version, hooks and whether they loaded."""
    infos = app.plugins.infos()
    if as_json:
        click.echo(json.dumps([_as_dict(info) for info in infos], ensure_ascii=False))
        return
    for info in infos:
        state = "FAILED" if info.error else ", ".join(info.hooks) or "no hooks"
        click.echo(f"{info.name:<16} {info.origin:<24} {state}")
    if not infos:
        click.echo("no plugins are in use")


@plugins.command()
@click.argument("name")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
@click.pass_obj
def show(app: Glmkit, name: str, as_json: bool) -> None:
    """Show one plugin: where it comes from, its hooks, commands, apps and load time."""
    info = _find(app, name)
    if as_json:
        click.echo(json.dumps(_as_dict(info) | _registered(app, name), ensure_ascii=False))
        return
    click.echo(f"name       {info.name}")
    click.echo(f"from       {info.origin}")
    click.echo(f"module     {info.entry.value if info.entry else '-'}")
    click.echo(f"loaded in  {info.load_ms:.1f} ms")
    click.echo(f"hooks      {', '.join(info.hooks) or '-'}")
    for kind, names in _registered(app, name).items():
        click.echo(f"{kind:<10} {', '.join(names) or '-'}")
    click.echo(f"failure    {info.error or '-'}")


@plugins.command()
@click.pass_context
def doctor(ctx: click.Context) -> None:
    """Check every plugin; exit 1 if one failed, lacks a dependency or has a table nobody reads."""
    app: Glmkit = ctx.obj
    problems = 0
    for info in app.plugins.infos():
        found = list(_problems(info))
        problems += len(found)
        click.echo(f"{'FAIL' if found else 'ok':<5} {info.name} ({info.load_ms:.1f} ms)")
        for problem in found:
            click.echo(f"      {problem}")
    known = {info.name for info in app.plugins.infos()}
    for name in sorted(set(app.config.plugins) - known):
        problems += 1
        click.echo(f"FAIL  [plugins.{name}] in the configuration: no such plugin is in use")
    if problems:
        ctx.exit(1)


def _find(app: Glmkit, name: str) -> PluginInfo:
    found = {info.name: info for info in app.plugins.infos()}
    if name not in found:
        raise UnknownNameError("plugin", name, found, hint="Run: glmkit plugins list")
    return found[name]


def _as_dict(info: PluginInfo) -> dict[str, object]:
    return {
        "name": info.name,
        "origin": info.origin,
        "module": info.entry.value if info.entry else None,
        "hooks": list(info.hooks),
        "load_ms": round(info.load_ms, 2),
        "error": info.error,
    }


def _registered(app: Glmkit, owner: str) -> dict[str, list[str]]:
    found: dict[str, Registry[Any]] = {
        "commands": app.plugins.commands(),
        "apps": app.plugins.apps(),
        "models": app.plugins.models(),
        "encoders": app.plugins.encoders(),
        "recipes": app.plugins.recipes(),
    }
    return {
        kind: [name for name in registry.names() if registry.owner(name) == owner]
        for kind, registry in found.items()
    }


def _problems(info: PluginInfo) -> Iterator[str]:
    if info.error:
        yield info.error
    if info.entry is not None:
        yield from _missing_requirements(info.entry)


def _missing_requirements(entry: EntryPoint) -> Iterator[str]:
    """Name the requirements of an entry point's distribution that are absent or too old.

    An extra with the plugin's own name counts: ``pip install 'glmkit[knowledge]'`` brings what the
    plugin ``knowledge`` needs.
    """
    from packaging.requirements import Requirement

    distribution = entry.dist
    for line in (distribution.requires or ()) if distribution else ():
        requirement = Requirement(line)
        marker = requirement.marker
        if marker and not any(marker.evaluate({"extra": each}) for each in ("", entry.name)):
            continue
        try:
            installed = version(requirement.name)
        except PackageNotFoundError:
            yield f"needs {requirement.name}, which is not installed: {_install_line(entry)}"
            continue
        if not requirement.specifier.contains(installed, prereleases=True):
            yield f"needs {requirement}, but {installed} is installed: {_install_line(entry)}"


def _install_line(entry: EntryPoint) -> str:
    distribution = entry.dist
    extras = distribution.metadata.get_all("Provides-Extra", []) if distribution else []
    extra = f"[{entry.name}]" if entry.name in extras else ""
    return f"pip install '{distribution.name if distribution else entry.name}{extra}'"
