"""``glmkit run web``: a page to chat, ask documents and draw on."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from glmkit import (
    LOADING,
    UsageError,
    given_of,
    model_options,
)

if TYPE_CHECKING:
    from collections.abc import Sequence

    from glmkit import Glmkit


_FILE = click.Path(path_type=Path, dir_okay=False)


@click.command()
@click.option("--host", help="Address to listen on; default: 127.0.0.1, this machine alone.")
@click.option("--port", type=int, help="Port; 0 takes a free one; default: 7860.")
@click.option("--api-key", help="Ask visitors for this key; better: GLMKIT_API_KEYS.")
@click.option(
    "--kb",
    "bases",
    multiple=True,
    metavar="[NAME=]FOLDER",
    help="Documents that visitors may ask; may be given several times.",
)
@click.option(
    "--adapter",
    "adapters",
    multiple=True,
    metavar="[NAME=]PATH",
    help="LoRA or P-Tuning prefix that visitors may choose; may be given several times.",
)
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
    api_key: str | None,
    feedback: Path | None,
    uploads: bool | None,
    show: bool,
    **given: Any,  # noqa: ANN401
) -> None:
    """Chat in a browser, ask documents, draw, and say what you think of the answers.

    Feedback becomes training data with: glmkit data from-feedback -o pairs.jsonl
    """
    from .running import Wishes, run

    flags = {"host": host, "port": port, "feedback": feedback, "uploads": uploads}
    wishes = Wishes(
        model=model,
        loading=given_of(given, LOADING),
        adapters=named(adapters, "--adapter"),
        bases=named(bases, "--kb"),
        image_models=image_models,
        loras=named(loras, "--lora"),
        keys=() if api_key is None else (api_key,),
        flags=flags,
        show=show,
    )
    run(app, wishes)


def named(values: Sequence[str], flag: str) -> dict[str, str]:
    """Read ``NAME=PATH`` or ``PATH``, which is called as its last part.

    :raises UsageError: if two have one name.
    """
    found: dict[str, str] = {}
    for value in values:
        name, mark, path = value.partition("=")
        if not mark or not name or "/" in name:
            name, path = Path(value).name, value
        if not path or name in found:
            raise UsageError(f"{flag} {value!r}: give each its own name: {flag} NAME=PATH")
        found[name] = path
    return found
