"""``glmkit data from-feedback``: what people thought of answers, as preference pairs."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from glmkit import UsageError

if TYPE_CHECKING:
    from glmkit import Glmkit

_FILE = click.Path(path_type=Path, dir_okay=False)


@click.command("from-feedback")
@click.argument("table", metavar="[DB]", type=_FILE, required=False)
@click.option(
    "--to",
    "wanted",
    type=click.Choice(["trl", "llama-factory"]),
    default="trl",
    show_default=True,
    help="Whose format to write.",
)
@click.option("-o", "--output", type=_FILE, required=True, help="File to write: .jsonl or .json.")
@click.option("--overwrite", is_flag=True, help="Replace the file if it is there.")
@click.pass_obj
def from_feedback(
    app: Glmkit, /, table: Path | None, wanted: str, output: Path, overwrite: bool
) -> None:
    """Write the feedback in DB as preference pairs; default: the table of the web page.

    A better answer is preferred to the one that was shown, an answer with thumbs up to one with
    thumbs down for the same conversation. Feedback that makes no pair is left out and counted.

    Train with them: glmkit finetune dpo --data FILE
    """
    from glmkit.dataset.converting import write_rows
    from glmkit.feedback import FeedbackStore, default_path

    table = table or default_path(app.config.home)
    if not table.is_file():
        raise UsageError(
            f"no feedback table {table}; name the file that 'glmkit run web' was told to keep"
        )
    found = FeedbackStore(table).pairs()
    for reason, count in found.skipped.items():
        click.echo(f"left out {count:,}: {reason}", err=True)
    if not found.pairs:
        raise UsageError(f"the feedback in {table} holds no preference; nothing is written")
    rows = (each.as_trl() if wanted == "trl" else each.as_llama_factory() for each in found.pairs)
    count = write_rows(rows, output, overwrite=overwrite)
    click.echo(f"{output}: {count:,} preference pairs, {wanted}")
