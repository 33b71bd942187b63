"""``glmkit kb``: index, search, inspect and evaluate knowledge bases."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from .evaluate import Figures, Report, evaluate, read_questions
from .session import Session, open_base
from .settings import ANSWERS, Settings

if TYPE_CHECKING:
    from glmkit import Glmkit

    from .base import UpdateReport

_FOLDER = click.Path(path_type=Path)
_ENCODER = click.option("--encoder", help="Catalog name, hub id or folder.")
_JSON = click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")


@click.group()
def kb() -> None:
    """Index, search, inspect and evaluate knowledge bases."""


@kb.command()
@click.argument("folder", type=_FOLDER)
@_ENCODER
@_JSON
@click.pass_obj
def index(app: Glmkit, folder: Path, encoder: str | None, as_json: bool) -> None:
    """Bring the index of FOLDER up to date; only changed files are read."""
    with open_base(app, folder, encoder) as (base, report):
        counts = _counts(report) | {"chunks": len(base)}
        if as_json:
            skipped = [{"path": path, "reason": reason} for path, reason in report.skipped]
            result = counts | {"skipped": skipped, "rebuilt": report.rebuilt}
            click.echo(json.dumps(result, ensure_ascii=False))
            return
    if report.rebuilt:
        click.echo(f"index rebuilt: {report.rebuilt}", err=True)
    for path, reason in report.skipped:
        click.echo(f"skipped {path}: {reason}", err=True)
    click.echo(", ".join(f"{name} {count}" for name, count in counts.items()))


def _counts(report: UpdateReport) -> dict[str, Any]:
    kinds = ("added", "changed", "removed", "unchanged")
    values = {name: getattr(report, name) for name in kinds}
    return {name: value if isinstance(value, int) else len(value) for name, value in values.items()}


@kb.command()
@click.argument("folder", type=_FOLDER)
@click.argument("query")
@_ENCODER
@click.option("--top-k", type=int, help="Most passages to show.")
@_JSON
@click.pass_obj
def search(
    app: Glmkit, folder: Path, query: str, encoder: str | None, top_k: int | None, as_json: bool
) -> None:
    """Show the passages of FOLDER nearest to QUERY, with scores, whatever the threshold."""
    from .retrieve import Retriever

    settings = Settings.of(app.plugin_config("knowledge"), top_k=top_k)
    with open_base(app, folder, encoder) as (base, _):
        retriever = Retriever(base, base.encoder, home=app.config.home)
        found = retriever.retrieve(query, top_k=settings.top_k)
    if as_json:
        fields = ("path", "location", "score", "text")
        passages = [{name: getattr(each, name) for name in fields} for each in found.passages]
        click.echo(json.dumps({"query": query, "passages": passages}, ensure_ascii=False))
        return
    for passage in found.passages:
        passes = " " if passage.score >= settings.threshold else "below the threshold"
        click.secho(
            f"{passage.score:.3f} {passage.path}, {passage.location} {passes}".rstrip(), bold=True
        )
        click.echo("\n".join(f"    {line}" for line in passage.text.splitlines()))


@kb.command()
@click.argument("folder", type=_FOLDER)
@_ENCODER
@_JSON
@click.pass_obj
def info(app: Glmkit, folder: Path, encoder: str | None, as_json: bool) -> None:
    """Say what the index of FOLDER holds, and which files could not be read."""
    with open_base(app, folder, encoder) as (base, report):
        result = {
            "folder": str(folder.resolve()),
            "encoder": base.encoder.name,
            "dimensions": base.encoder.dimensions,
            "chunks": len(base),
            "skipped": [{"path": path, "reason": reason} for path, reason in report.skipped],
        }
    if as_json:
        click.echo(json.dumps(result, ensure_ascii=False))
        return
    for name in ("folder", "encoder", "dimensions", "chunks"):
        click.echo(f"{name:<11} {result[name]}")
    for path, reason in report.skipped:
        click.echo(f"skipped     {path}: {reason}")


@kb.command("eval")
@click.option("--kb", "folder", required=True, type=_FOLDER, help="Folder of documents.")
@click.option(
    "--questions",
    required=True,
    type=click.Path(path_type=Path, exists=True, dir_okay=False),
    help="Question file, JSON lines.",
)
@click.option("--no-answer", is_flag=True, help="Measure retrieval and refusal only, no model.")
@click.option("--model", help="Catalog name, hub id or folder.")
@_ENCODER
@click.option("--threshold", type=float, help="Least probability of a passage to count, 0..1.")
@click.option("--answer", type=click.Choice(ANSWERS), help="Generate, quote, or whichever suits.")
@click.option("--details", is_flag=True, help="List the questions that went wrong.")
@_JSON
@click.pass_obj
def evaluate_command(
    app: Glmkit,
    /,
    folder: Path,
    questions: Path,
    no_answer: bool,
    model: str | None,
    encoder: str | None,
    details: bool,
    as_json: bool,
    **flags: object,
) -> None:
    """Measure how well FOLDER answers a file of questions."""
    from .retrieve import Retriever

    asked = read_questions(questions)
    settings = replace(
        Settings.of(app.plugin_config("knowledge"), **flags),
        when_missing="refuse",
        log_unanswered=None,
    )
    with open_base(app, folder, encoder) as (base, _):
        retriever = Retriever(base, base.encoder, home=app.config.home)
        session = None if no_answer else Session(app, retriever, settings, model=model)
        work = evaluate(
            retriever,
            asked,
            threshold=settings.threshold,
            answer=None if session is None else session.answer_alone,
        )
        report: Report = app.watch(work)
    if as_json:
        click.echo(json.dumps(report.as_dict(), ensure_ascii=False))
    else:
        _print(report)
    if details:
        _print_details(report)


def _print(report: Report) -> None:
    columns = {"all": report.figures(), **{name: report.figures(name) for name in report.languages}}
    click.echo(f"{'':<18}" + "".join(f"{name:>9}" for name in columns))
    for metric in Figures.__dataclass_fields__:
        cells = (_cell(getattr(figures, metric)) for figures in columns.values())
        click.echo(f"{metric:<18}" + "".join(f"{cell:>9}" for cell in cells))


def _cell(value: float | int | None) -> str:
    if value is None:
        return "-"
    return str(value) if isinstance(value, int) else f"{value:.3f}"


def _print_details(report: Report) -> None:
    for outcome in report.outcomes:
        question = outcome.question
        wrong = [
            (question.answerable and outcome.rank is None, "not found"),
            (question.answerable and outcome.refused, "refused"),
            (not question.answerable and not outcome.refused, "not refused"),
            (question.answerable and outcome.answer is not None and not outcome.contains, "answer"),
        ]
        for happened, name in wrong:
            if happened:
                click.echo(f"{name:<12} {outcome.score:.3f} {question.question}", err=True)
