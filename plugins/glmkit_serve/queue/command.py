"""``glmkit run queue``: answer the questions of a table, and take questions over HTTP."""

from __future__ import annotations

import logging
import signal
import socket
import threading
from collections.abc import Iterator
from contextlib import ExitStack, closing, contextmanager
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import click

from glmkit import (
    LOADING,
    SAMPLING,
    GlmkitError,
    UsageError,
    given_of,
    model_options,
    sampling_options,
)

from ..limits import check_exposure
from ..options import address_of, door_options, host_option, listening, named_options, named_paths
from ..settings import Settings
from .options import database_options, queue_settings

if TYPE_CHECKING:
    from types import FrameType

    from glmkit import Glmkit

    from .database import Database
    from .post import Post
    from .settings import QueueSettings
    from .worker import Worker

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
@door_options(8000)
@host_option
@click.option("--history", type=int, help="Earlier turns of a session that the model sees.")
@click.option("--system", help="System message before each conversation.")
@click.option(
    "--lease", "lease_s", type=float, help="Seconds after which a silent worker is given up."
)
@click.option("--max-attempts", type=int, help="Times that a question is tried.")
@click.option("--max-waiting", type=int, help="Questions that may wait; more are refused.")
@click.option("--keep-days", type=float, help="Remove settled questions after so many days.")
@model_options
@named_options
@sampling_options
@click.pass_obj
def queue(
    app: Glmkit,
    /,
    workers: int,
    no_http: bool,
    model: str | None,
    api_keys: tuple[str, ...],
    adapters: tuple[str, ...],
    bases: tuple[str, ...],
    hosts: tuple[str, ...],
    **flags: Any,  # noqa: ANN401
) -> None:
    """Answer questions out of a database, in order, each once.

    Other programs submit over HTTP, or insert rows: INSERT INTO glmkit_questions (session,
    question) VALUES ('anna', 'What is a glacier?'). Any number of these commands, on any machines,
    may work on one database.
    """
    if no_http and not workers:
        raise UsageError("--no-http with --workers 0 leaves nothing to do")
    settings = queue_settings(app, **given_of(flags, ("db", "table", *_QUEUE_FLAGS)))
    served = Settings.of(app.plugin_config("serve"), **given_of(flags, ("host", "port")))
    keys = (*served.api_keys, *app.config.api_keys, *api_keys)
    served = replace(served, api_keys=keys, hosts=(*served.hosts, *hosts))
    if not no_http:
        check_exposure(served.host, served.api_keys)
    from ..api.served import Wanted
    from .database import open_queue
    from .post import Post

    named = named_paths("--adapter", adapters), named_paths("--kb", bases)
    wanted = Wanted(model, *named, loading=given_of(flags, LOADING))
    options = replace(app.config.generation, **given_of(flags, SAMPLING))
    post = Post(app.config, settings, wanted, options)
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
    with ExitStack() as stack:
        door = None
        if served is not None:
            door = stack.enter_context(listening(served.host, served.port))
        stack.enter_context(_working(app, database, post, workers, over))
        click.echo(f"answering with {workers} worker{'s' * (workers != 1)}", err=True)
        if served is not None and door is not None:
            _serve(database, post.settings, served, door, over)
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
        from .fleet import hired

        with hired(app, database, post) as worker:
            yield from _thread(worker, over)
    elif workers:
        yield from _processes(post, workers, over)
    else:
        yield


def _thread(worker: Worker, over: threading.Event) -> Iterator[None]:
    def work() -> None:
        try:
            worker.run()
        finally:
            over.set()

    thread = threading.Thread(target=work, name="worker")
    thread.start()
    try:
        yield
        failed = over.is_set()
    finally:
        worker.stop()
        thread.join()
    if failed:
        raise GlmkitError("the worker ended; the lines above say why")


def _processes(post: Post, workers: int, over: threading.Event) -> Iterator[None]:
    from .fleet import Fleet

    fleet = Fleet(post, workers, over)
    fleet.start()
    try:
        yield
    finally:
        fleet.stop()
    if over.is_set():
        raise GlmkitError("the workers cannot begin; the lines above say why")


def _serve(
    database: Database,
    settings: QueueSettings,
    served: Settings,
    door: socket.socket,
    over: threading.Event,
) -> None:
    """Serve until a signal comes or the workers end."""
    import uvicorn

    from .http import ROOT, app_of
    from .store import Store

    web = app_of(Store(database, settings), settings, served.door)
    config = uvicorn.Config(
        web,
        log_level="error",
        access_log=False,
        server_header=False,
        timeout_graceful_shutdown=max(1, round(settings.stop_s)),
    )
    server = uvicorn.Server(config)

    def watch() -> None:
        over.wait()
        server.should_exit = True

    threading.Thread(target=watch, name="watch", daemon=True).start()
    door.listen()  # who reads the next line may ask at once
    click.echo(f"{address_of(door)}{ROOT}", err=True)
    server.run(sockets=[door])


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
