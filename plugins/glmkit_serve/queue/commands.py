"""``glmkit queue``: ask, look, take back, and clean up, where the database can be reached."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import click

from glmkit import SAMPLING, UsageError, given_of, sampling_options

from .options import database_options, queue_settings

if TYPE_CHECKING:
    from glmkit import Glmkit

    from .store import Question, Store

_JSON = click.option("--json", "as_json", is_flag=True, help="Print one JSON object a line.")
_NUMBER = click.argument("number", type=click.IntRange(1, 2**63 - 1))
_POLL_S = 0.2


@click.group()
def queue() -> None:
    """Ask the queue, and look into it."""


@contextmanager
def _opened(
    app: Glmkit, db: str | None, table: str | None, *, new: bool = False
) -> Iterator[Store]:
    """Open the queue, which only who has something for it may make anew."""
    from .database import open_queue
    from .store import Store

    settings = queue_settings(app, db=db, table=table)
    database = open_queue(settings, new=new)
    try:
        yield Store(database, settings)
    finally:
        database.close()


@queue.command()
@click.argument("question")
@database_options
@click.option("--session", help="Questions of one session are answered in order.")
@click.option("--model", help="Who shall answer; default: the workers' choice.")
@click.option("--wait", is_flag=True, help="Wait for the answer and print it.")
@sampling_options
@click.pass_obj
def submit(
    app: Glmkit,
    /,
    question: str,
    db: str | None,
    table: str | None,
    session: str | None,
    model: str | None,
    wait: bool,
    **flags: Any,  # noqa: ANN401
) -> None:
    """Put QUESTION at the end of the line and print its number."""
    options = given_of(flags, SAMPLING)
    with _opened(app, db, table, new=True) as store:
        number = store.submit(question, session, model=model, options=options)
        if not wait:
            click.echo(number)
            return
        found = _awaited(store, number)
    if found.state != "done":
        raise UsageError(f"question {number} is {found.state}: {found.error or 'no answer'}")
    click.echo(found.answer)


def _awaited(store: Store, number: int) -> Question:
    while not (found := store.get(number)).settled:
        time.sleep(_POLL_S)
    return found


@queue.command()
@click.argument("number", type=click.IntRange(1, 2**63 - 1), required=False)
@database_options
@_JSON
@click.pass_obj
def status(
    app: Glmkit, number: int | None, db: str | None, table: str | None, as_json: bool
) -> None:
    """Say how many questions there are in each state; with NUMBER, all about one."""
    with _opened(app, db, table) as store:
        found = store.counts() if number is None else _about(store, store.get(number))
        models = store.waiting_for() if number is None else {}
        known = store.presence.known() if number is None else set()
    if as_json:
        click.echo(json.dumps(found, ensure_ascii=False))
        return
    for name, value in found.items():
        if value is not None:
            click.echo(f"{name:<13} {value}")
    for model, count in models.items():
        if model is not None:
            lacking = "" if model in known else ", which no worker has"
            click.echo(f"{count} of them wait for the model {model}{lacking}")


def _about(store: Store, question: Question) -> dict[str, Any]:
    names = ("id", "session", "model", "state", "question", "answer", "partial", "error")
    found = {name: getattr(question, name) for name in (*names, "finish_reason", "attempts")}
    return found | {"ahead": store.ahead(question) if question.state == "waiting" else None}


@queue.command()
@database_options
@click.option("--limit", type=click.IntRange(1), default=100, help="Most to list.")
@_JSON
@click.pass_obj
def dead(app: Glmkit, db: str | None, table: str | None, limit: int, as_json: bool) -> None:
    """List the questions that were tried in vain, the latest first, and why."""
    with _opened(app, db, table) as store:
        found = store.listed("dead", limit=limit)
    for each in found:
        if as_json:
            told = {"id": each.id, "session": each.session, "question": each.question}
            told |= {"error": each.error, "attempts": each.attempts}
            click.echo(json.dumps(told, ensure_ascii=False))
        else:
            shown = " ".join(each.question.split())[:60]
            click.echo(f"{each.id:>6}  {shown}\n        {each.error} ({each.attempts} attempts)")


@queue.command()
@click.argument("numbers", type=click.IntRange(1, 2**63 - 1), nargs=-1)
@database_options
@click.option("--all", "every", is_flag=True, help="All that are dead.")
@click.pass_obj
def retry(
    app: Glmkit, numbers: tuple[int, ...], db: str | None, table: str | None, every: bool
) -> None:
    """Let dead questions be tried again."""
    if bool(numbers) == every:
        raise UsageError("say which questions to try again, or --all")
    with _opened(app, db, table) as store:
        count = store.retry(None if every else numbers)
    click.echo(f"{count} to be tried again")


@queue.command()
@_NUMBER
@database_options
@click.pass_obj
def cancel(app: Glmkit, number: int, db: str | None, table: str | None) -> None:
    """Take a question back; a running answer is stopped."""
    with _opened(app, db, table) as store:
        if not store.cancel(number):
            raise UsageError(f"question {number} is {store.get(number).state} already")
    click.echo("cancelled")


@queue.command()
@database_options
@click.option("--days", type=click.FloatRange(0), required=True, help="Settled so long ago.")
@click.option("--dead", "dead_too", is_flag=True, help="Dead ones, too.")
@click.pass_obj
def purge(app: Glmkit, db: str | None, table: str | None, days: float, dead_too: bool) -> None:
    """Remove questions that were answered or cancelled some time ago."""
    with _opened(app, db, table) as store:
        states = ("done", "cancelled", *(("dead",) if dead_too else ()))
        count = store.purge(days, states)
    click.echo(f"{count} removed")
