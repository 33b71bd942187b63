"""``glmkit reward``: ask a reward model what answers are worth."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    from glmkit import Glmkit
    from glmkit.dataset import Data

    from .scored import Totals

_PATH = click.Path(path_type=Path)


@click.group()
def reward() -> None:
    """Ask a reward model what answers are worth.

    Train one: glmkit finetune reward --data PAIRS --output RUN
    """


@reward.command()
@click.argument("sources", nargs=-1, required=True, metavar="DATA...")
@click.option("--reward", "run", type=_PATH, required=True, help="Run folder of the recipe reward.")
@click.option("-m", "--model", help="Model that it was trained on; default: as the run recorded.")
@click.option("-o", "--output", type=_PATH, help="File of JSON lines with a score for each row.")
@click.option("--overwrite", is_flag=True, help="Begin anew where the file is there.")
@click.option("--dataset-dir", type=_PATH, help="Folder of dataset_info.json.")
@click.option(
    "--ranked",
    type=click.Choice(["all", "best"]),
    default="all",
    show_default=True,
    help="Of ranked answers, compare all with each other, or the best with the others.",
)
@click.option(
    "--skip-bad", is_flag=True, help="Leave out rows that are no samples, or too long to be scored."
)
@click.option("--device", help="cpu, cuda, cuda:1; default: the best.")
@click.option("--dtype", help="Precision of the weights; default: as they lie.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
@click.pass_obj
def score(
    app: Glmkit,
    /,
    sources: Sequence[str],
    run: Path,
    model: str | None,
    output: Path | None,
    overwrite: bool,
    as_json: bool,
    device: str | None,
    dtype: str | None,
    skip_bad: bool,
    **reading: Any,  # noqa: ANN401
) -> None:
    """Score the last answer of each conversation in DATA, or both answers of each pair.

    Of pairs, the share that is told right is printed with its interval, beside that of taking the
    longer answer. With -o, a job that was stopped goes on where it was.
    """
    from glmkit.dataset import opening

    from .scored import score_rows
    from .scoring import RewardModel

    data: Data = app.watch(opening(sources, kind=None, skip_bad=skip_bad, **reading))
    click.echo(data.described, err=True)
    ready = RewardModel.load(run, app, base=model, device=device, dtype=dtype)
    how = {"overwrite": overwrite, "skip_bad": skip_bad}
    totals = app.watch(score_rows(ready, data, output, run=run, **how))
    if as_json:
        click.echo(json.dumps(totals.as_dict(), ensure_ascii=False))
        return
    for line in _lines(totals, output):
        click.echo(line)


def _lines(totals: Totals, output: Path | None) -> Iterator[str]:
    yield totals.text
    if output is not None:
        yield f"{output}: {totals.rows:,} rows"
