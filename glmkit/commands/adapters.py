"""``glmkit adapters``: look at adapters, check what they fit, merge and rewrite them."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import click

from ..errors import UsageError

if TYPE_CHECKING:
    from ..app import Glmkit
    from ..runtime.adapters import Adapter

_ADAPTER = click.Path(path_type=Path)
_ALPHA = click.option("--alpha", type=float, help="LoRA's alpha, for raw files that record none.")
_ANY_BASE = click.option(
    "--any-base", is_flag=True, help="Take an adapter trained on another model of this shape too."
)
_FORCE = click.option("--force", is_flag=True, help="Replace what the output folder holds.")


@click.group()
def adapters() -> None:
    """Inspect, check, merge and rewrite LoRA adapters and P-Tuning prefixes."""


@adapters.command()
@click.argument("path", type=_ADAPTER)
@_ALPHA
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def show(path: Path, alpha: float | None, as_json: bool) -> None:
    """Show what an adapter is: its layout, rank, alpha, modules and base."""
    from ..runtime.adapters import AlphaMissingError, read_adapter
    from ..runtime.saving import describe

    try:
        facts = dict(describe(read_adapter(path, alpha=alpha)))
    except AlphaMissingError:
        facts = dict(describe(read_adapter(path, alpha=1.0)))
        facts |= {"alpha": "not recorded: pass --alpha", "scale": "alpha / rank"}
    if as_json:
        click.echo(json.dumps(facts, ensure_ascii=False))
        return
    for key, value in facts.items():
        click.echo(f"{key:<12} {value}")


@adapters.command()
@click.argument("path", type=_ADAPTER)
@click.option("--model", required=True, help="Catalog name, hub id or folder of the base.")
@click.option("--family", help="What the base is, where its files do not say.")
@_ALPHA
@_ANY_BASE
@click.pass_obj
def check(
    app: Glmkit,
    /,
    path: Path,
    model: str,
    family: str | None,
    alpha: float | None,
    any_base: bool,
) -> None:
    """Say whether an adapter fits a model, or what differs; exit code 0 or 1.

    Reads no weights but those that tell the model from others.
    """
    from ..runtime.adapters import AlphaMissingError, read_adapter
    from ..runtime.saving import check as fits

    note = ""
    try:
        adapter = read_adapter(path, alpha=alpha)
    except AlphaMissingError:
        adapter = read_adapter(path, alpha=1.0)  # whether it fits does not depend on it
        note = "; it records no alpha: give it when you load it (--adapter-alpha)"
    name, folder = _base(app, model)
    click.echo(fits(adapter, folder, name=name, family=family, any_base=any_base) + note)


def _base(app: Glmkit, name: str) -> tuple[str, Path]:
    from .. import sources

    located = app.watch(sources.ensure(name, config=app.config, kind="model"))
    return located.name, located.path


@adapters.command()
@click.argument("base")
@click.argument("paths", metavar="ADAPTER...", nargs=-1, required=True, type=_ADAPTER)
@click.option("-o", "--out", required=True, type=_ADAPTER, help="Folder to write.")
@click.option("--weight", "weights", multiple=True, type=float, help="One per adapter; default 1.")
@click.option("--family", help="What the base is, where its files do not say.")
@_ALPHA
@_ANY_BASE
@_FORCE
@click.pass_obj
def merge(
    app: Glmkit,
    /,
    base: str,
    paths: Sequence[Path],
    out: Path,
    weights: Sequence[float],
    family: str | None,
    alpha: float | None,
    any_base: bool,
    force: bool,
) -> None:
    """Write BASE with the ADAPTERs added to its weights, in the same layout and precision.

    The result is compared with base + adapters before it appears.
    """
    if weights and len(weights) != len(paths):
        raise UsageError(
            f"got {len(weights)} --weight for {len(paths)} adapters; give one for each"
        )
    from ..runtime.merging import merge as work

    chosen = [
        (_read(path, alpha), weight)
        for path, weight in zip(paths, weights or [1.0] * len(paths), strict=True)
    ]
    name, folder = _base(app, base)
    done = app.watch(
        work(folder, chosen, out, name=name, family=family, any_base=any_base, force=force)
    )
    click.echo(
        f"wrote {done.path}: {done.tensors} matrices changed, {done.size / 1e9:.2f} GB; scores "
        f"move by up to {done.effect:.3g}, and are within {done.error:.2g} of base + adapter"
    )


def _read(path: Path, alpha: float | None) -> Adapter:
    from ..runtime.adapters import read_adapter, recorded_alpha

    return read_adapter(path, alpha=None if recorded_alpha(path) else alpha)


@adapters.command()
@click.argument("path", type=_ADAPTER)
@click.option("-o", "--out", required=True, type=_ADAPTER, help="Folder to write.")
@click.option("--model", help="The base that it was trained on, to remember its fingerprint.")
@_ALPHA
@_FORCE
@click.pass_obj
def convert(
    app: Glmkit,
    /,
    path: Path,
    out: Path,
    model: str | None,
    alpha: float | None,
    force: bool,
) -> None:
    """Rewrite a LoRA of any layout as the folder that peft reads today; same numbers."""
    from ..runtime.adapters import read_adapter
    from ..runtime.fingerprint import Fingerprint
    from ..runtime.saving import check as fits, save_adapter

    adapter = read_adapter(path, alpha=alpha)
    base = None
    if model is not None:
        name, folder = _base(app, model)
        fits(adapter, folder, name=name)
        base = Fingerprint.of(folder, name)
    known = base or adapter.fingerprint
    note = "" if known else "; it records no base: give --model to record one"
    click.echo(f"wrote {save_adapter(adapter, out, base=base, force=force)}{note}")
