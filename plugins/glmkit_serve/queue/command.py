"""``glmkit run queue``: answer the questions of a table, and take questions over HTTP."""

from __future__ import annotations

import logging
import signal
import threading
from collections.abc import Iterator
from contextlib import closing, contextmanager
from typing import TYPE_CHECKING, Any

import click

from glmkit import (
    LOADING,
    SAMPLING,
    GenerationOptions,
    Glmkit,
    GlmkitError,
    UsageError,
    given_of,
    model_options,
    sampling_options,
)

from ..limits import check_exposure
from ..settings import Settings
from .options import database_options, queue_settings

if TYPE_CHECKING:
    from types import FrameType

    import uvicorn

    from .database import Database
    from .fleet import Fleet, Post
    from .settings import QueueSettings

_QUEUE_FLAGS = ("history", "system", "slots", "lease_s", "max_attempts", "max_waiting", "keep_days")


@click.command()
@database_options
@click.option(
    "--workers",
    type=click.IntRange(0, 64),
    default=1,
    show_default=True,
    help="Workers to run here, each with the model in memory; 0: HTTP alone.",
)
@click.option("--slots", type=int, help="Questions that a worker answers side by side.")
@click.option(
    "--no-http", "--worker-only", "no_http", is_flag=True, help="Answer the table alone, no HTTP."
)
@click.option("--host", help="Address to listen at; default: this machine's own, 127.0.0.1.")
@click.option("--port", type=int, help="Port; default: 8000; 0: any that is free.")
@click.option(
    "--api-key",
    "api_keys",
    envvar="GLMKIT_API_KEYS",
    help="Of which clients send one, separated by commas (GLMKIT_API_KEYS).",
)
@click.option("--history", type=int, help="Earlier turns of a session that the model sees.")
@click.option("--system", help="System message before each conversation.")
@click.option(
    "--lease", "lease_s", type=float, help="Seconds after which a silent worker is given up."
)
@click.option("--max-attempts", type=int, help="Times that a question is tried.")
@click.option("--max-waiting", type=int, help="Questions that may wait; more are refused.")
@click.option("--keep-days", type=float, help="Remove settled questions after so many days.")
@model_options
@click.option("--adapter", help="LoRA folder or file, or P-Tuning prefix folder, to put on.")
@sampling_options
@click.pass_obj
def queue(
    app: Glmkit,
    /,
    workers: int,
    no_http: bool,
    host: str | None,
    port: int | None,
    api_keys: str | None,
    model: str | None,
    **flags: Any,  # noqa: ANN401
) -> None:
    """Answer questions out of a database, in order, each once.

    Other programs submit over HTTP, or insert rows: INSERT INTO glmkit_questions (session,
    question) VALUES ('anna', 'What is a glacier?'). Any number of these commands, on any machines,
    may work on one database.
    """
    from dataclasses import replace

    from .database import open_queue
    from .fleet import Post

    if no_http and not workers:
        raise UsageError("--no-http with --workers 0 leaves nothing to do")
    settings = queue_settings(app, **given_of(flags, ("db", "table", *_QUEUE_FLAGS)))
    keys = None if api_keys is None else [each.strip() for each in api_keys.split(",")]
    served = Settings.of(app.plugin_config("serve"), host=host, port=port, api_keys=keys)
    if not no_http:
        check_exposure(served.host, served.api_keys)
    options: GenerationOptions = replace(app.config.generation, **given_of(flags, SAMPLING))
    post = Post(app.config, settings, model, given_of(flags, (*LOADING, "adapter")), options)
    logging.basicConfig(level=logging.WARNING, format="%(asctime)s %(levelname)s %(message)s")
    try:
        with _signals(), closing(open_queue(settings)) as database:
            click.echo(f"queue {settings.table} in {database.name}", err=True)
            _run(app, database, post, workers, None if no_http else served)
    except KeyboardInterrupt:
        click.echo("stopped", err=True)


def _run(
    app: Glmkit, database: Database, post: Post, workers: int, served: Settings | None
) -> None:
    """Work until told to stop, or until the workers end by themselves."""
    over = threading.Event()
    with _working(app, database, post, workers, over):
        click.echo(f"answering with {workers} worker{'s' * (workers != 1)}", err=True)
        if served is not None:
            _serve(_server(database, post.settings, served), over)
        while served is None and not over.wait(0.2):
            pass


@contextmanager
def _working(
    app: Glmkit, database: Database, post: Post, workers: int, over: threading.Event
) -> Iterator[None]:
    """Have workers while the block runs: one is a thread, several are processes.

    :param over: set when they end by themselves.
    """
    if workers == 1:
        from .fleet import hire

        worker = hire(app, database, post)

        def work() -> None:
            try:
                worker.run()
            finally:
                over.set()

        thread = threading.Thread(target=work, name="worker")
        thread.start()
        try:
            yield
        finally:
            worker.stop()
            thread.join()
    elif workers:
        yield from _fleet(post, workers, over)
    else:
        yield


def _fleet(post: Post, workers: int, over: threading.Event) -> Iterator[None]:
    from .fleet import Fleet

    fleet: Fleet = Fleet(post, workers, over)
    fleet.start()
    try:
        yield
    finally:
        fleet.stop()
    if over.is_set():
        raise GlmkitError("the workers cannot begin; the lines above say why")


def _server(database: Database, settings: QueueSettings, served: Settings) -> uvicorn.Server:
    import uvicorn

    from .http import app_of
    from .store import Store

    web = app_of(Store(database, settings), settings, served.door)
    config = uvicorn.Config(
        web, host=served.host, port=served.port, log_level="warning", access_log=False
    )
    return uvicorn.Server(config)


def _serve(server: uvicorn.Server, over: threading.Event) -> None:
    """Serve until a signal comes or the workers end."""

    def watch() -> None:
        over.wait()
        server.should_exit = True

    threading.Thread(target=watch, name="watch", daemon=True).start()
    host, port = server.config.host, server.config.port
    shown = f"[{host}]" if ":" in host else host
    click.echo(f"http://{shown}:{port}/v1/queue", err=True)
    server.run()


@contextmanager
def _signals() -> Iterator[None]:
    """Let SIGTERM stop as Ctrl-C does, so that what was taken on is given back."""

    def stop(number: int, frame: FrameType | None) -> None:
        raise KeyboardInterrupt

    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGTERM, stop)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
