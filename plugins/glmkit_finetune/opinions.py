"""``glmkit data from-feedback``: what people thought of answers, as training data."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import click

from glmkit import UsageError

if TYPE_CHECKING:
    from glmkit import Glmkit
    from glmkit.feedback import FeedbackStore

_FILE = click.Path(path_type=Path, dir_okay=False)


@click.command("from-feedback")
@click.argument("table", metavar="[DB]", type=_FILE, required=False)
@click.option(
    "--to",
    "wanted",
    type=click.Choice(["trl", "llama-factory", "kto"]),
    default="trl",
    show_default=True,
    help="Whose format to write pairs in; kto: each answer by itself, good or not.",
)
@click.option("-o", "--output", type=_FILE, required=True, help="File to write: .jsonl or .json.")
@click.option("--overwrite", is_flag=True, help="Replace the file if it is there.")
@click.pass_obj
def from_feedback(
    app: Glmkit, /, table: Path | None, wanted: str, output: Path, overwrite: bool
) -> None:
    """Write the feedback in DB as training data; default: the table of the web page.

    As preference pairs: a better answer is preferred to the one that was shown, an answer with
    thumbs up to one with thumbs down for the same conversation. With --to kto, each answer by
    itself: good with thumbs up, bad with thumbs down; a better answer is good, and what it
    replaces bad where it has no thumb. Feedback that makes nothing is left out and counted.

    Train with pairs: glmkit finetune dpo --data FILE; with the others: glmkit finetune kto
    """
    from glmkit.dataset.converting import write_rows
    from glmkit.feedback import FeedbackStore, default_path

    table = table or default_path(app.config.home)
    if not table.is_file():
        raise UsageError(
            f"no feedback table {table}; name the file that 'glmkit run web' was told to keep"
        )
    store = FeedbackStore(table)
    found = _judged(store) if wanted == "kto" else _paired(store, wanted)
    for reason, count in found.skipped.items():
        click.echo(f"left out {count:,}: {reason}", err=True)
    if not found.rows:
        raise UsageError(f"the feedback in {table} holds no {found.one}; nothing is written")
    count = write_rows(found.rows, output, overwrite=overwrite)
    click.echo(f"{output}: {count:,} {found.several}, {wanted}")


class _Found(NamedTuple):
    """What a table comes to."""

    rows: list[dict[str, Any]]
    skipped: Mapping[str, int]
    one: str
    several: str


def _paired(store: FeedbackStore, wanted: str) -> _Found:
    found = store.pairs()
    rows = [each.as_trl() if wanted == "trl" else each.as_llama_factory() for each in found.pairs]
    return _Found(rows, found.skipped, "preference", "preference pairs")


def _judged(store: FeedbackStore) -> _Found:
    from glmkit.thumbs import judgements_of

    found = judgements_of(store)
    rows = [each.as_row() for each in found.found]
    good = sum(each.good for each in found.found)
    return _Found(rows, found.skipped, "opinion", f"answers, {good:,} of them good")
