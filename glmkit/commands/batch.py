"""``glmkit batch``: answer a file of prompts into a file of answers, resumably."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    from ..app import Glmkit
    from ..batch.job import Summary

_FILE = click.Path(path_type=Path, dir_okay=False)


@click.command()
@click.argument("source", metavar="INPUT", type=_FILE)
@click.option("-o", "--output", type=_FILE, required=True, help="JSONL file of the answers.")
@click.option("--model", help="Catalog name, hub id or folder; default: the configured model.")
@click.option(
    "--prompt-template",
    "template",
    help="User message with columns in braces: 'Translate: {text}'.",
)
@click.option("--system", help="System message of rows that have none.")
@click.option("--adapter", type=click.Path(path_type=Path), help="LoRA adapter for all rows.")
@click.option("--adapter-column", help="Column that names each row's adapter.")
@click.option("--max-tokens", type=int, help="Most new tokens of an answer.")
@click.option("--temperature", type=float, help="0 is greedy; higher is more random.")
@click.option("--top-p", type=float, help="Keep the likeliest tokens up to this probability mass.")
@click.option("--top-k", type=int, help="Keep this many of the likeliest tokens; 0 keeps all.")
@click.option("--repetition-penalty", type=float, help="Above 1 discourages repetition.")
@click.option("--seed", type=int, help="Same seed, same answers.")
@click.option("--concurrency", type=click.IntRange(1), help="Answers side by side.")
@click.option(
    "--order",
    type=click.Choice(["finished", "input"]),
    default="finished",
    show_default=True,
    help="Write rows as they finish, or as they stood.",
)
@click.option("--limit", type=click.IntRange(1), help="Only the first rows.")
@click.option("--response-column", default="response", show_default=True, help="For the answer.")
@click.option("--retry-errors", is_flag=True, help="Ask rows again that failed before.")
@click.option("--device", help="cpu, cuda, cuda:1 or mps.")
@click.option("--json", "as_json", is_flag=True, help="Print the summary as one JSON object.")
@click.pass_obj
def batch(
    app: Glmkit,
    /,
    source: Path,
    output: Path,
    model: str | None,
    adapter: Path | None,
    device: str | None,
    as_json: bool,
    **given: Any,  # noqa: ANN401
) -> None:
    """Answer every row of a JSONL, CSV or Parquet file.

    A row is a conversation (messages), a prompt, an alpaca instruction, a request of OpenAI's
    batch API, or any columns with --prompt-template. Its columns are kept beside the answer. Run
    again after an interruption, the job goes on where it stopped.
    """
    from ..batch.job import Job, run_job
    from ..batch.rows import Reading, kind_of

    kind_of(source)
    options = replace(app.config.generation, **_taken(given, _SAMPLING))
    reading = Reading(**_taken(given, ("system", "template", "adapter_column")))
    name = model or app.config.model
    job = Job(source, output, name, reading, options, **_taken(given, given))
    loaded = app.load_model(model, device=device, adapter=None if adapter is None else str(adapter))
    _report(app.watch(run_job(loaded, job)), output, as_json)


_SAMPLING = ("max_tokens", "temperature", "top_p", "top_k", "repetition_penalty", "seed")


def _taken(given: dict[str, Any], names: Any) -> dict[str, Any]:  # noqa: ANN401
    """Take what was given of these options out of all of them."""
    taken = {name: given.pop(name) for name in list(names)}
    return {name: value for name, value in taken.items() if value is not None}


def _report(summary: Summary, output: Path, as_json: bool) -> None:
    if as_json:
        click.echo(json.dumps(vars(summary) | {"tokens_per_second": round(summary.speed, 1)}))
        return
    before = f" ({summary.before} were done before)" if summary.before else ""
    click.echo(f"{output}: {summary.answered} answered, {summary.failed} failed{before}")
    if summary.answered:
        click.echo(
            f"{summary.prompt_tokens} prompt and {summary.completion_tokens} new tokens in "
            f"{summary.seconds:.1f} s, {summary.speed:.0f} new tokens/s"
        )
    for error, count in summary.errors.items():
        click.echo(f"  {count} x {error}", err=True)
