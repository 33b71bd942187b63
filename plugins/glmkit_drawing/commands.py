"""``glmkit draw``: what is done with LoRAs of picture models beside drawing."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import click

from .settings import lora_of

if TYPE_CHECKING:
    from glmkit import Glmkit


@click.group()
def draw() -> None:
    """Merge LoRAs of picture models; 'glmkit run draw' draws."""


@draw.command()
@click.argument("loras", metavar="PATH[:WEIGHT]...", nargs=-1, required=True)
@click.option("-o", "--out", required=True, type=click.Path(path_type=Path), help="File to write.")
@click.option("--rank", type=int, help="Round to this rank; default: exact, the ranks add up.")
@click.option("--image-model", help="Make sure that the result fits this picture model.")
@click.option("--force", is_flag=True, help="Replace the file where it exists.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
@click.pass_obj
def merge(
    app: Glmkit,
    /,
    loras: Sequence[str],
    out: Path,
    rank: int | None,
    image_model: str | None,
    force: bool,
    as_json: bool,
) -> None:
    """Write the weighted sum of LoRAs as one file that diffusers loads.

    Each may be a file of diffusers or kohya, or a PEFT folder.
    """
    from .lora import read_lora
    from .merging import merge as work, save

    chosen = [lora_of(each) for each in loras]
    merged = work([(read_lora(path), weight) for path, weight in chosen], rank=rank)
    out = out if out.suffix == ".safetensors" else out / "pytorch_lora_weights.safetensors"
    said = ", ".join(f"{path.name}:{weight:g}" for path, weight in chosen)
    save(merged, out, said=said, force=force)
    if image_model is not None:
        _try_on(app, image_model, out)
    facts = {"path": str(out), "modules": len(merged.parts), "rank": merged.rank}
    if as_json:
        click.echo(json.dumps(facts | {"error": merged.error}, ensure_ascii=False))
        return
    lost = "exact" if rank is None else f"{merged.error:.2%} of the sum was lost to the rank"
    click.echo(f"wrote {out}: {len(merged.parts)} modules, rank {merged.rank}, {lost}")


def _try_on(app: Glmkit, name: str, file: Path) -> None:
    from .painter import Painter

    painter = app.load_image_model(name)
    if isinstance(painter, Painter):
        painter.wear([(file, 1.0)])
