"""``glmkit serve``: models over HTTP, as OpenAI's API."""

from __future__ import annotations

import logging
import socket
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

import click

from glmkit import LOADING, MissingExtraError, given_of, model_options

from .limits import check_exposure
from .options import address_of, door_options, host_option, listening, named_options, named_paths
from .settings import Settings

if TYPE_CHECKING:
    from fastapi import FastAPI

    from glmkit import Glmkit

    from .api.served import Serving

_FLAGS = (
    *("host", "port", "concurrency", "max_waiting", "max_tokens", "timeout_s", "shutdown_s"),
    "hosts",
    "origins",
)


@click.command()
@model_options
@named_options
@click.option("--encoder", help="What /v1/embeddings embeds with; default: as configured.")
@click.option("--queue-db", "queue_db", metavar="URL", help="Also serve the queue in a database.")
@door_options(8000)
@click.option("--concurrency", type=int, help="Answers side by side; default: what suits.")
@click.option("--max-waiting", type=int, help="Questions that may wait; default: 128.")
@click.option("--max-tokens", type=int, help="Most tokens to ask for; default: 4096.")
@click.option("--timeout", "timeout_s", type=float, help="Seconds for an answer; default: 600.")
@click.option(
    "--shutdown", "shutdown_s", type=float, help="Seconds for answers at the end; default: 30."
)
@host_option
@click.option(
    "--cors", "origins", multiple=True, help="Page that may read answers: https://example.org"
)
@click.option("--access-log/--no-access-log", default=True, help="One line for each request.")
@click.pass_obj
def serve(
    app: Glmkit,
    /,
    model: str | None,
    adapters: tuple[str, ...],
    bases: tuple[str, ...],
    encoder: str | None,
    queue_db: str | None,
    api_keys: tuple[str, ...],
    access_log: bool,
    **given: Any,  # noqa: ANN401
) -> None:
    """Serve models over HTTP, as OpenAI's API: chats, texts, embeddings, pictures.

    The model is asked as "default", each adapter and knowledge base by its name.
    """
    settings = settings_of(app, api_keys, given)
    check_exposure(settings.host, settings.api_keys)
    _check_installed()
    from .api.served import Serving, Wanted

    wanted = Wanted(
        model,
        named_paths("--adapter", adapters),
        named_paths("--kb", bases),
        encoder,
        given_of(given, LOADING),
    )
    with listening(settings.host, settings.port) as door, ExitStack() as stack:
        serving = Serving.open(app, settings, wanted)
        stack.callback(serving.close)
        web = stack.enter_context(_application(serving, queue_db))
        if access_log:
            _log_requests()
        door.listen()  # who reads the next line may ask at once
        click.echo(_greeting(serving, door), err=True)
        _run(web, serving, door)


def settings_of(app: Glmkit, keys: Sequence[str], flags: Mapping[str, Any]) -> Settings:
    """Return the settings of the file, the environment and the flags; keys of all three count.

    :raises ConfigError: if a value is out of range.
    """
    given = {name: flags[name] for name in _FLAGS if flags[name] not in (None, ())}
    settings = Settings.of(app.plugin_config("serve"), **given)
    return replace(settings, api_keys=(*settings.api_keys, *app.config.api_keys, *keys))


def _check_installed() -> None:
    for name in ("fastapi", "uvicorn", "prometheus_client"):
        if find_spec(name) is None:
            raise MissingExtraError("glmkit serve", name, "serve")


@contextmanager
def _application(serving: Serving, queue_db: str | None) -> Iterator[FastAPI]:
    """Return the application, with the queue where one is wanted."""
    from .api.app import build

    web = build(serving)
    if queue_db is None:
        yield web
        return
    from .queue.beside import answering
    from .queue.settings import QueueSettings

    table = serving.app.plugin_config("serve").get("queue", {})
    settings = QueueSettings.of(table, db=queue_db)
    with answering(web, settings, serving):
        yield web


def _log_requests() -> None:
    """Write a line for each request to standard error."""
    handler = logging.StreamHandler()
    handler.setFormatter(logging.Formatter("%(asctime)s %(message)s", "%H:%M:%S"))
    logger = logging.getLogger("glmkit.serve")
    logger.addHandler(handler)
    logger.setLevel(logging.INFO)
    logger.propagate = False


def _greeting(serving: Serving, door: socket.socket) -> str:
    names = ", ".join(serving.models)
    keys = "" if serving.settings.api_keys else ", no key needed"
    return f"{serving.live.name} at {address_of(door)}/v1 as {names}{keys} (Ctrl-C ends it)"


def _run(web: FastAPI, serving: Serving, door: socket.socket) -> None:
    """Serve until a signal comes; answers that are being written have their time to end."""
    import uvicorn

    class Server(uvicorn.Server):
        async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
            """Take no more questions, also over connections that are open."""
            serving.draining = True
            await super().shutdown(sockets)

    config = uvicorn.Config(
        web,
        log_level="error",
        access_log=False,
        server_header=False,
        timeout_keep_alive=30,
        timeout_graceful_shutdown=max(1, round(serving.settings.shutdown_s)),
    )
    try:
        Server(config).run(sockets=[door])
    except KeyboardInterrupt:  # which uvicorn raises again once all is over
        click.echo("stopped", err=True)
