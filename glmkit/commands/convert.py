"""``glmkit convert``: a checkpoint in the other layout."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Literal

import click

if TYPE_CHECKING:
    from ..app import Glmkit


@click.command()
@click.argument("path", type=click.Path(path_type=Path, exists=True, file_okay=False))
@click.argument("out", type=click.Path(path_type=Path))
@click.option(
    "--to",
    type=click.Choice(["hf", "original"]),
    required=True,
    help="hf: GlmForCausalLM, which transformers loads; original: ChatGLM's own layout.",
)
@click.option("--family", help="Which family the model is of, where the folder does not say.")
@click.option("--force", is_flag=True, help="Replace what OUT holds.")
@click.option(
    "--shard-gb", type=click.FloatRange(min=0.001), default=4.0, help="Most GB of one weight file."
)
@click.pass_obj
def convert(
    app: Glmkit,
    /,
    path: Path,
    out: Path,
    to: Literal["hf", "original"],
    family: str | None,
    force: bool,
    shard_gb: float,
) -> None:
    """Write the checkpoint in PATH to OUT in the other layout, bit for bit.

    For ChatGLM2-6B, ChatGLM3-6B and GLM-4-9B. Weights keep their dtype.
    """
    from ..runtime.convert import convert as work

    size = int(shard_gb * 1e9)
    done = app.watch(work(path, out, to=to, family=family, force=force, shard_bytes=size))
    for note in done.notes:
        click.echo(f"note: {note}", err=True)
    click.echo(f"wrote {done.path}: {done.tensors} tensors, {done.size / 1e9:.2f} GB")
