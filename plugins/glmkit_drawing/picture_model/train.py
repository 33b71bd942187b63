"""Train the embedded picture model anew, stage by stage.

    python -m glmkit_drawing.picture_model.train all --folder WORK --out MODEL

Stages: `vae` (pictures to small latents and back), `text` (which emoji a wish is about), `unet`
(latents from noise and wishes), `decoder` (sharper pictures from the same latents), `export`
(diffusers' format, half precision). Each keeps its state below --folder and goes on from there
when it is called again; with more --steps, a finished stage learns further. The emoji are fetched
from npm, 81 MB, and kept in the same folder.

On one CPU core of 2021 (about 50 GFLOP/s) all of it takes about two hours; a GPU is used where
there is one (not measured).
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import click

from glmkit import show_progress

if TYPE_CHECKING:
    from .stages import Studio

STAGES = ("vae", "text", "unet", "decoder", "export")


@click.command(help=__doc__, context_settings={"max_content_width": 100})
@click.argument("stages", nargs=-1, required=True, type=click.Choice(["all", *STAGES]))
@click.option(
    "--folder",
    type=click.Path(file_okay=False, path_type=Path),
    required=True,
    help="Where the fetched packages and the state of each stage are kept.",
)
@click.option("--out", type=click.Path(file_okay=False, path_type=Path), help="For export.")
@click.option("--steps", type=click.IntRange(min=1), help="Instead of the stage's own number.")
@click.option("--batch", type=click.IntRange(min=1), help="Instead of the stage's own number.")
@click.option("--device", help="cpu, cuda, ...; chosen where this is left out.")
def main(
    stages: tuple[str, ...],
    folder: Path,
    out: Path | None,
    steps: int | None,
    batch: int | None,
    device: str | None,
) -> None:
    """Run the stages that are named, in their order."""
    asked = STAGES if "all" in stages else stages
    if "export" in asked and out is None:
        raise click.UsageError("export needs --out, the folder that the model is written to")
    studio = _studio(folder, device)
    for stage in STAGES:
        if stage not in asked:
            continue
        if stage != "export":
            _train(studio, stage, steps, batch)
        elif out is not None:
            _export(studio, out)


def _studio(folder: Path, device: str | None) -> Studio:
    import torch

    from .data import load
    from .stages import Studio

    chosen = device or ("cuda" if torch.cuda.is_available() else "cpu")
    return Studio(folder, load(folder), device=chosen)


def _train(studio: Studio, stage: str, steps: int | None, batch: int | None) -> None:
    from .stages import BATCHES, PLANS, TRAINERS

    plan = PLANS[stage]
    if steps is not None:
        plan = replace(plan, steps=steps)
    show_progress(TRAINERS[stage](studio, plan, batch or BATCHES[stage]))


def _export(studio: Studio, out: Path) -> None:
    from .export import export

    click.echo(f"{out}: {export(studio, out) / 1e6:.1f} MB")


if __name__ == "__main__":
    main()
