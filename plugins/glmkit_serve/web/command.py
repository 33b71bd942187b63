"""``glmkit run web``: a page to chat, ask documents and draw on."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from glmkit import LOADING, given_of, model_options

from ..options import door_options, named_options, named_paths

if TYPE_CHECKING:
    from glmkit import Glmkit


_FILE = click.Path(path_type=Path, dir_okay=False)


@click.command()
@door_options(7860)
@named_options
@click.option(
    "--image-model",
    "image_models",
    multiple=True,
    help="What draws: name, hub id or folder; may be given several times.",
)
@click.option(
    "--lora",
    "loras",
    multiple=True,
    metavar="[NAME=]PATH",
    help="LoRA for drawing that visitors may choose; may be given several times.",
)
@click.option(
    "--allow-host",
    "hosts",
    multiple=True,
    help="Another name that the page may be called by, behind a proxy; may be given several times.",
)
@click.option("--feedback", type=_FILE, help="Table of feedback; default: in glmkit's home.")
@click.option("--uploads/--no-uploads", default=None, help="Whether visitors may add documents.")
@click.option("--open", "show", is_flag=True, help="Open the page in a browser.")
@model_options
@click.pass_obj
def web(
    app: Glmkit,
    /,
    model: str | None,
    bases: tuple[str, ...],
    adapters: tuple[str, ...],
    image_models: tuple[str, ...],
    loras: tuple[str, ...],
    host: str | None,
    port: int | None,
    api_keys: tuple[str, ...],
    hosts: tuple[str, ...],
    feedback: Path | None,
    uploads: bool | None,
    show: bool,
    **given: Any,  # noqa: ANN401
) -> None:
    """Chat in a browser, ask documents, draw, and say what you think of the answers.

    Feedback becomes training data with: glmkit data from-feedback -o pairs.jsonl
    """
    from .running import Wishes, run

    flags: dict[str, Any] = {"host": host, "port": port, "hosts": hosts or None}
    flags |= {"feedback": feedback, "uploads": uploads}
    wishes = Wishes(
        model=model,
        loading=given_of(given, LOADING),
        adapters=named_paths("--adapter", adapters),
        bases=named_paths("--kb", bases),
        image_models=image_models,
        loras=named_paths("--lora", loras),
        keys=api_keys,
        flags=flags,
        show=show,
    )
    run(app, wishes)
