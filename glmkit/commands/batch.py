"""``glmkit batch``: answer a file of prompts into a file of answers, resumably."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Generator, Mapping
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import click

from ..errors import GlmkitError, UsageError
from .options import (
    FORMAT,
    LOADING,
    SAMPLING,
    format_options,
    given_of,
    model_options,
    sampling_options,
)

if TYPE_CHECKING:
    from ..app import Glmkit
    from ..batch.job import Job, Summary
    from ..runtime.engines.ray.cluster import Cluster
    from ..servers import Server
    from ..types import ChatModel, Progress

_FILE = click.Path(path_type=Path, dir_okay=False)


@click.command()
@click.argument("source", metavar="INPUT", type=_FILE)
@click.option("-o", "--output", type=_FILE, required=True, help="File of the answers: JSONL.")
@click.option(
    "--prompt-template",
    "template",
    help="User message with columns in braces: 'Translate: {text}'.",
)
@click.option("--system", help="System message of rows that have none.")
@click.option(
    "--adapter",
    "adapters",
    metavar="[NAME=]PATH",
    multiple=True,
    help="Adapter to load; several for --adapter-column.",
)
@click.option("--adapter-column", help="Column that names each row's adapter; empty: none.")
@click.option(
    "--concurrency",
    type=click.IntRange(1),
    help="Answers side by side; default: what suits the engine, the model and the machine.",
)
@click.option(
    "--order",
    type=click.Choice(["finished", "input"]),
    default="finished",
    show_default=True,
    help="Write rows as soon as they finish, or in the order of the input.",
)
@click.option("--limit", type=click.IntRange(1), help="Only so many rows, the first ones.")
@click.option(
    "--response-column",
    default="response",
    show_default=True,
    help="Column that the answer is written to.",
)
@click.option("--retry-errors", is_flag=True, help="Ask rows again that failed before.")
@click.option("--workers", type=click.IntRange(1), help="Engine ray: how many load the model.")
@click.option(
    "--ray-address",
    help="Engine ray: local (this machine, the default), auto, or HOST:PORT of the cluster's head.",
)
@click.option("--gpus-per-worker", type=float, help="Engine ray: GPUs of each; may be a fraction.")
@click.option("--cpus-per-worker", type=click.IntRange(1), help="Engine ray: CPUs of each.")
@click.option(
    "--requests-per-minute", type=float, help="Engine openai: most requests that begin in a minute."
)
@click.option(
    "--tokens-per-minute", type=float, help="Engine openai: most tokens, asked and answered."
)
@model_options
@sampling_options
@format_options
@click.option("--json", "as_json", is_flag=True, help="Print the summary as one JSON object.")
@click.pass_obj
def batch(app: Glmkit, /, as_json: bool, **given: Any) -> None:  # noqa: ANN401
    """Answer every row of a JSONL, JSON, CSV, TSV or Parquet file.

    A row is a conversation (messages), a prompt, an alpaca instruction, a request of OpenAI's
    batch API, or any columns with --prompt-template. Its columns are kept beside the answer. Run
    again after an interruption, the job goes on where it stopped.
    """
    from ..batch.job import check_input, run_job

    _refuse_adapters(given["adapters"], given["adapter_column"], _engine(app, given))
    job = _job(app, given)
    total = check_input(job)  # before the model, which may take minutes
    model = _model(app, given)
    if _engine(app, given) == "openai":
        job = replace(job, model=model.name)  # which the server may have been asked for
    summary = _watched(app, run_job(model, job, total=total))
    _report(summary, job.output, as_json)
    if summary.all_failed:
        click.get_current_context().exit(1)


def _job(app: Glmkit, given: dict[str, Any]) -> Job:
    from ..batch.job import Job
    from ..batch.rows import Reading

    return Job(
        given["source"],
        given["output"],
        given["model"] or app.config.model,
        Reading(**given_of(given, ("system", "template", "adapter_column"))),
        replace(app.config.generation, **given_of(given, (*SAMPLING, *FORMAT))),
        adapters=given["adapters"],
        loading=_loading(app, given),
        **given_of(given, _JOB),
    )


def _model(app: Glmkit, given: dict[str, Any]) -> ChatModel:
    """Load the model, and the adapters onto it."""
    adapters, alpha = given["adapters"], given["adapter_alpha"]
    others = [each for each in LOADING if not (adapters and each == "adapter_alpha")]
    places = {"server": _server(app, given), "cluster": _cluster(app, given)}
    model = app.load_model(given["model"], **given_of(given, others) | places)
    _put_on(model, adapters, alpha)
    return model


_JOB = ("order", "concurrency", "limit", "response_column", "retry_errors")


def _watched(app: Glmkit, events: Generator[Progress, None, Summary]) -> Summary:
    """Run a job to its end.

    :raises Abort: if it is interrupted; says how far it is.
    """
    far = ""

    def noted() -> Generator[Progress, None, Summary]:
        nonlocal far
        with closing(events):
            while True:
                try:
                    event = next(events)
                except StopIteration as stop:
                    return cast("Summary", stop.value)
                far = f"{event.done} of {event.total} rows are done; "
                yield event

    try:
        summary: Summary = app.watch(noted())
    except KeyboardInterrupt:
        raise click.Abort(f"{far}the same command goes on with the others") from None
    return summary


def _refuse_adapters(adapters: tuple[str, ...], column: str | None, engine: str | None) -> None:
    """Refuse adapters that no row could name, before any is loaded.

    :raises UsageError: if so.
    """
    if len(adapters) > 1 and column is None:
        raise UsageError(
            "several adapters need --adapter-column to say which one answers a row; give that, or "
            "one --adapter"
        )
    if column is not None and not adapters and engine in _ADAPTED:
        raise UsageError(
            "--adapter-column chooses among adapters, and none is given; add --adapter NAME=PATH "
            "for each, or leave it out"
        )
    names = [name or path.name for name, path in map(_named, adapters)]
    twice = next((each for each in names if names.count(each) > 1), None)
    if twice is not None:
        raise UsageError(f"--adapter names {twice!r} twice; give each its own: NAME=PATH")


_ADAPTED = (None, "local", "transformers", "ray")
"""Engines whose adapters are loaded here; a server has its own."""

_CLUSTER = ("workers", "gpus_per_worker", "cpus_per_worker")


def _cluster(app: Glmkit, given: dict[str, Any]) -> Cluster | None:
    """Return where the ray engine works; None for another engine.

    :raises UsageError: if that is said for another engine.
    """
    from ..runtime.engines.ray.cluster import Cluster

    said = given_of(given, (*_CLUSTER, "ray_address"))
    if _engine(app, given) == "ray":
        address = given.get("ray_address") or app.config.ray_address
        return Cluster(address, **given_of(given, _CLUSTER))
    if said:
        option = "--" + next(iter(said)).replace("_", "-")
        raise UsageError(f"{option} belongs to --engine ray; give both or neither")
    return None


_RATES = ("requests_per_minute", "tokens_per_minute")


def _server(app: Glmkit, given: dict[str, Any]) -> Server | str | None:
    """Return the server that was given; None: as configured.

    :raises UsageError: if that is said for another engine.
    """
    rates, address = given_of(given, _RATES), given.get("server")
    if rates and _engine(app, given) != "openai":
        option = "--" + next(iter(rates)).replace("_", "-")
        raise UsageError(f"{option} belongs to --engine openai; give both or neither")
    if not rates:
        return cast("str | None", address)
    own = app.config.openai
    return replace(own, base_url=address or own.base_url, **rates)


def _engine(app: Glmkit, given: dict[str, Any]) -> str | None:
    """Return the engine that was asked for; an address asks for one that has a server."""
    return given.get("engine") or ("openai" if given.get("server") else app.config.engine)


def _loading(app: Glmkit, given: dict[str, Any]) -> dict[str, Any]:
    """Return how the model is loaded, as far as its answers depend on it.

    A worker of the ray engine answers as this machine would: a job may go on there and back.
    """
    configured = {"engine": _engine(app, given), "family": app.config.family}
    names = (each for each in LOADING if each not in ("device", "max_memory", "server"))
    loading = {each.replace("_", " "): given.get(each) or configured.get(each) for each in names}
    loading["engine"] = None if loading["engine"] in _SAME else loading["engine"]
    if loading["engine"] == "openai" and app.config.openai.extra:
        loading["extra of requests"] = _digest(app.config.openai.extra)
    return loading


def _digest(extra: Mapping[str, Any]) -> str:
    """Tell fields from others without writing them down, as tokens may be among them."""
    return hashlib.sha256(json.dumps(dict(extra), sort_keys=True).encode()).hexdigest()


_SAME = ("local", "ray")
"""Engines that answer as the one does that suits the model."""


def _put_on(model: ChatModel, adapters: tuple[str, ...], alpha: float | None) -> None:
    """Load the adapters; the first is put on, as rows of a job without a column wear it."""
    if not adapters:
        return
    load = getattr(model, "load_adapter", None)
    if load is None:
        raise UsageError(f"{model.name} takes no adapters; they need the engine 'local'")
    for each in adapters:
        name, path = _named(each)
        load(path, name, alpha=None if alpha is None or _records_alpha(path) else alpha)


def _named(given: str) -> tuple[str | None, Path]:
    """Take ``NAME=PATH`` apart; what is there as a whole is a path that has a ``=``."""
    name, found, path = given.partition("=")
    return (name, Path(path)) if found and not Path(given).exists() else (None, Path(given))


def _records_alpha(path: Path) -> bool:
    """Tell whether an adapter says its alpha itself; one of a plugin's own format may need it."""
    from ..runtime.adapters import recorded_alpha

    try:
        return recorded_alpha(path)
    except GlmkitError:
        return False


def _report(summary: Summary, output: Path, as_json: bool) -> None:
    if as_json:
        click.echo(json.dumps(summary.as_dict()))
        return
    failed = f", {summary.failed_before} failed" if summary.failed_before else ""
    before = f" ({summary.before} were done before{failed})" if summary.before else ""
    click.echo(f"{output}: {summary.answered} answered, {summary.failed} failed{before}")
    if summary.answered:
        click.echo(
            f"{summary.prompt_tokens} prompt and {summary.completion_tokens} new tokens in "
            f"{summary.seconds:.1f} s, {summary.speed:.0f} new tokens/s"
        )
    for error, count in summary.errors.items():
        click.echo(f"  {count} x {error}", err=True)
    if summary.more_kinds:
        click.echo(f"  and {summary.more_kinds} more kinds of errors", err=True)
    if summary.failed_before:
        click.echo("  --retry-errors asks the rows again that failed before", err=True)
