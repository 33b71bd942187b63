"""``glmkit data``: check, convert, measure and preview training data, and make some."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from glmkit import UsageError
from glmkit.dataset import Data, opening
from glmkit.training.config import TrainConfig

from .columns import reading_of, reading_options
from .flags import normal
from .opinions import from_feedback

if TYPE_CHECKING:
    from glmkit import Glmkit
    from glmkit.dataset.checks import Finding, Longest, Report
    from glmkit.dataset.statistics import Measured

_FILE = click.Path(path_type=Path, dir_okay=False)
_SOURCES = click.argument("sources", nargs=-1, required=True, metavar="DATA...")
_JSON = click.option("--json", "as_json", is_flag=True, help="Print JSON.")
_SKIP = click.option("--skip-bad", is_flag=True, help="Leave out rows that cannot be learnt.")
_TRAIN_ON = click.option(
    "--train-on",
    type=click.Choice(["all", "last"]),
    default="all",
    show_default=True,
    help="Which answers are learnt.",
)
_RANKED = click.option(
    "--ranked",
    type=click.Choice(["all", "best"]),
    default="all",
    show_default=True,
    help="Of ranked answers, compare all with each other, or the best with the others.",
)
_SEED = click.option("--seed", default=42, show_default=True, help="Of what FILE#500 picks.")
_MODEL = click.option("--model", help="Count in this model's tokens: name, hub id or folder.")
_FAMILY = click.option("--family", help="What the model is, where its files do not say.")
_MAX_LENGTH = click.option(
    "--max-length",
    type=click.IntRange(8),
    help=f"Tokens of a sample at most, with --model; default: {TrainConfig.max_length}.",
)
_OVERWRITE = click.option("--overwrite", is_flag=True, help="Replace the file if it is there.")
_OUTPUT = click.option(
    "-o", "--output", type=_FILE, required=True, help="File to write: .jsonl or .json."
)


@click.group(context_settings={"token_normalize_func": normal})
def data() -> None:
    """Check, convert, measure and preview training data.

    DATA is a file (JSON lines, JSON array, CSV, TSV, Parquet), a folder, or a name in
    dataset_info.json; FILE#500 takes 500 samples of it, FILE@0.3 gives it this weight in a mixture.
    Formats are detected by their columns.
    """


data.add_command(from_feedback)


@data.command()
@_SOURCES
@reading_options
@_MODEL
@_FAMILY
@_MAX_LENGTH
@click.option("--limit", default=50, show_default=True, help="Findings to print; 0: all.")
@_JSON
@click.pass_obj
def check(
    app: Glmkit,
    /,
    sources: Sequence[str],
    model: str | None,
    family: str | None,
    max_length: int | None,
    limit: int,
    as_json: bool,
    **options: Any,  # noqa: ANN401
) -> None:
    """List what is wrong with DATA, by file and line; exit 1 if it cannot be trained on.

    Rows that cannot be learnt stop a training; warned of are duplicates, samples that are too
    long (--model), text that looks like a model's own markup, and text decoded wrongly.
    """
    from glmkit.dataset.checks import check as look_through

    longest = _longest(app, model, family, max_length)
    report: Report = app.watch(look_through(sources, longest=longest, **reading_of(options)))
    if as_json:
        _echo_json(_as_dict(report))
    else:
        _print_report(report, limit)
    if not report.good:
        click.get_current_context().exit(1)


def _as_dict(report: Report) -> dict[str, Any]:
    return {
        "good": report.good,
        "files": report.files,
        "rows": report.rows,
        "samples": report.samples,
        "pairs": report.pairs,
        "longer": report.longer,
        "verdicts": report.verdicts,
        "desirable": report.desirable,
        "counts": report.counts,
        "findings": [_finding(each) for each in report.findings],
    }


def _finding(found: Finding) -> dict[str, Any]:
    place = {"line": None, "row": None} if found.place is None else found.place._asdict()
    where = {key: value or None for key, value in place.items()}
    return {"fault": found.fault, "file": found.file, **where, "reason": found.reason}


def _print_report(report: Report, limit: int) -> None:
    for line in report.files:
        click.echo(line)
    shown = sorted(report.findings, key=lambda each: not each.stops)[: limit or None]
    for each in shown:
        click.echo(_marked(each))
    if len(shown) < len(report.findings):
        click.echo(f"... and {len(report.findings) - len(shown):,} more: --limit 0 shows all")
    counts = ", ".join(f"{name} {count:,}" for name, count in report.counts.items())
    verdict = "good" if report.good else "cannot be trained on as it is"
    unit = "pairs" if report.pairs else "answers" if report.verdicts else "rows"
    click.echo(f"{report.samples:,} of {report.rows:,} {unit} can be learnt; {counts or verdict}")
    if report.pairs:
        share = report.longer / report.pairs
        click.echo(f"the better answer is the longer one in {report.longer:,} pairs ({share:.1%})")
    if report.verdicts:
        share = report.desirable / report.verdicts
        click.echo(f"{report.desirable:,} answers are desirable ({share:.1%})")


def _marked(finding: Finding) -> str:
    kind = (
        click.style("error  ", fg="red") if finding.stops else click.style("warning", fg="yellow")
    )
    return f"{kind} {finding}"


@data.command()
@_SOURCES
@click.option(
    "--to",
    "wanted",
    type=click.Choice(["messages", "alpaca", "sharegpt"]),
    required=True,
    help="Format to write.",
)
@_OUTPUT
@_OVERWRITE
@reading_options
@_SKIP
@_RANKED
@_SEED
@click.pass_obj
def convert(
    app: Glmkit,
    /,
    sources: Sequence[str],
    wanted: str,
    output: Path,
    overwrite: bool,
    skip_bad: bool,
    ranked: str,
    seed: int,
    **options: Any,  # noqa: ANN401
) -> None:
    """Write DATA in another format; several are written into one file."""
    from glmkit.dataset.converting import as_rows, write_rows

    found = _opened(app, sources, options, skip_bad=skip_bad, seed=seed, ranked=ranked)
    count = write_rows(as_rows(found, wanted), output, overwrite=overwrite)
    click.echo(f"{output}: {count:,} rows, {wanted}")


def _opened(
    app: Glmkit,
    sources: Sequence[str],
    options: dict[str, Any],
    **settings: Any,  # noqa: ANN401
) -> Data:
    """Read data through, and say on standard error what it is."""
    found: Data = app.watch(opening(sources, kind=None, **reading_of(options), **settings))
    click.echo(found.described, err=True)
    return found


@data.command()
@_SOURCES
@reading_options
@_SKIP
@_TRAIN_ON
@_RANKED
@_SEED
@_MODEL
@_FAMILY
@_MAX_LENGTH
@_JSON
@click.pass_obj
def stats(
    app: Glmkit,
    /,
    sources: Sequence[str],
    model: str | None,
    family: str | None,
    max_length: int | None,
    as_json: bool,
    **options: Any,  # noqa: ANN401
) -> None:
    """Measure DATA: turns, lengths, languages, and with --model tokens and what is truncated."""
    from glmkit.dataset.statistics import MEASURING

    longest = _longest(app, model, family, max_length)
    settings = {name: options.pop(name) for name in ("skip_bad", "train_on", "ranked", "seed")}
    found = _opened(app, sources, options, **settings)
    measured: Measured = app.watch(MEASURING[found.holds](found, longest))
    if as_json:
        _echo_json(measured.as_dict() | {"fingerprint": found.fingerprint})
        return
    for line in _lines(measured, longest):
        click.echo(line)


def _lines(measured: Measured, longest: Longest | None) -> Iterator[str]:
    told = measured.as_dict()
    whole: int = told.get(measured.counts[0]) or 0
    for name, value in told.items():
        if isinstance(value, int) and name != "overlong":
            yield f"{name.replace('_', ' '):<20} {value:,}"
    yield f"{'questions each':<20} " + _shares(told["turns"], whole)
    yield f"{'scripts':<20} " + _shares(told["scripts"], whole)
    for name, value in told.items():
        if value and (name.endswith("_characters") or name == "tokens"):
            figures = ", ".join(f"{key} {each:,}" for key, each in value.items())
            yield f"{name.replace('_', ' '):<20} {figures}"
    if longest is not None:
        share = measured.overlong / max(whole, 1)
        above = f"{measured.overlong:,} above {longest.tokens:,} tokens ({share:.1%})"
        yield f"{'overlong':<20} {above}"


def _shares(counts: dict[str, int], whole: int) -> str:
    return ", ".join(f"{name}: {count:,} ({count / whole:.0%})" for name, count in counts.items())


@data.command()
@_SOURCES
@click.option("-n", "count", default=1, show_default=True, help="How many samples, the first ones.")
@reading_options
@_SKIP
@_TRAIN_ON
@_RANKED
@_SEED
@_MODEL
@_FAMILY
@_MAX_LENGTH
@click.option(
    "--overlong",
    type=click.Choice(["truncate", "skip"]),
    default="truncate",
    show_default=True,
    help="What becomes of longer samples.",
)
@click.option("--system", help="System message of samples that have none; default: the model's.")
@_JSON
@click.pass_obj
def preview(
    app: Glmkit,
    /,
    sources: Sequence[str],
    count: int,
    model: str | None,
    as_json: bool,
    **options: Any,  # noqa: ANN401
) -> None:
    """Show the first samples of DATA as they are learnt, with --model to the very token.

    What is learnt is green on a terminal and in brackets elsewhere. Of preference data, the
    conversation with the better answer comes first, then the one with the worse; answers with a
    verdict are told desirable or undesirable.
    """
    from .previews import as_dict, first, open_encoder, plain_lines, written_lines

    length = options.pop("max_length") or TrainConfig.max_length
    writing = {name: options.pop(name) for name in ("family", "overlong", "system")}
    settings = {name: options.pop(name) for name in ("skip_bad", "train_on", "ranked", "seed")}
    if model is None and as_json:
        raise UsageError("--json shows tokens, which a model makes; give --model")
    some = first(_opened(app, sources, options, **settings), count)
    if model is None:
        _echo_parts("\n".join(plain_lines(each)) for each in some)
        return
    encoder = open_encoder(app, model, max_length=length, **writing)
    read = ((each, encoder.encode([each.sample])[0]) for each in some)
    if as_json:
        _echo_json([as_dict(*each, encoder) for each in read])
    else:
        _echo_parts("\n".join(written_lines(*each, encoder)) for each in read)


def _echo_parts(parts: Iterator[str]) -> None:
    for number, part in enumerate(parts):
        click.echo(f"\n{part}" if number else part)


@data.command()
@click.option("--name", required=True, help="What the model shall call itself.")
@click.option("--author", required=True, help="Who made it.")
@click.option("--name-zh", help="Its name in Chinese; default: the same.")
@click.option("--author-zh", help="Who made it, in Chinese; default: the same.")
@click.option(
    "--lang",
    default="zh,en",
    show_default=True,
    help="Languages of the questions, those of --from too.",
)
@click.option(
    "--others/--no-others",
    default=True,
    show_default=True,
    help="With questions that sound alike and are about others.",
)
@click.option(
    "--from",
    "template",
    type=_FILE,
    help="Fill in {{name}} and {{author}} of this file instead of our own questions.",
)
@_OUTPUT
@_OVERWRITE
def identity(
    name: str,
    author: str,
    name_zh: str | None,
    author_zh: str | None,
    lang: str,
    others: bool,
    template: Path | None,
    output: Path,
    overwrite: bool,
) -> None:
    """Write the set of questions and answers that teaches a model its name and its maker.

    Train with it: glmkit finetune lora --data FILE
    """
    from glmkit.dataset.converting import write_rows

    from .identity import Identity, filled_rows, identity_rows

    whole = {"en": Identity(name, author), "zh": Identity(name_zh or name, author_zh or author)}
    languages = [each.strip() for each in lang.split(",") if each.strip()]
    if template is not None:
        if not others:
            raise UsageError("--no-others leaves out some of our questions; --from has its own")
        rows = filled_rows(template, whole, languages)
    else:
        rows = identity_rows(whole, languages, others=others)
    count = write_rows(rows, output, overwrite=overwrite)
    click.echo(
        f"{output}: {count:,} rows, alpaca" if template is None else f"{output}: {count:,} rows"
    )


def _longest(
    app: Glmkit, model: str | None, family: str | None, max_length: int | None
) -> Longest | None:
    """Return how tokens are counted; None where no model is named."""
    if model is None:
        if max_length is not None:
            raise UsageError("--max-length counts tokens, which a model makes; give --model")
        return None
    from .previews import counting

    return counting(app, model, family, max_length or TrainConfig.max_length)


def _echo_json(value: object) -> None:
    click.echo(json.dumps(value, ensure_ascii=False))
