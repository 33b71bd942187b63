"""Runs the API on the loopback address, and asks it."""

from __future__ import annotations

import json
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager

import httpx
import uvicorn

import glmkit_serve
from glmkit.testing import make_app
from glmkit_serve.api.app import build
from glmkit_serve.api.served import Serving
from glmkit_serve.settings import Settings

HELLO = [{"role": "user", "content": "hello there"}]


def until(true, limit_s=10.0):
    """Wait for what another thread does."""
    end = time.monotonic() + limit_s
    while not true():
        assert time.monotonic() < end, "it never came to be"
        time.sleep(0.005)


def serving_of(home, model, *, plugins=None, config=None, **settings):
    """Return a model as it is served."""
    app = make_app(home, config, serve=glmkit_serve, **(plugins or {}))
    return Serving(app, Settings(port=0, **settings), model)


@contextmanager
def running(web) -> Iterator[str]:
    """Serve an application until the block ends; yields its address."""
    door = socket.socket()
    door.bind(("127.0.0.1", 0))
    config = uvicorn.Config(web, log_level="error", access_log=False, timeout_graceful_shutdown=1)
    server = uvicorn.Server(config)
    thread = threading.Thread(target=server.run, kwargs={"sockets": [door]})
    thread.start()
    try:
        until(lambda: server.started)
        yield f"http://127.0.0.1:{door.getsockname()[1]}"
    finally:
        server.should_exit = True
        thread.join()
        door.close()


@contextmanager
def client_of(serving) -> Iterator[httpx.Client]:
    """Serve models, and yield what asks them."""
    with closing(serving), running(build(serving)) as address:
        with httpx.Client(base_url=address, timeout=30, verify=False, trust_env=False) as client:
            yield client


def events_of(response: httpx.Response, begun: threading.Event | None = None) -> list[dict]:
    """Return the events of a stream; the last one says that it is done.

    :param begun: set when the first of them is there.
    """
    lines = []
    for line in response.iter_lines():
        if begun is not None:
            begun.set()
        if line:
            lines.append(line)
    assert all(line.startswith("data: ") for line in lines)
    *pieces, done = [line.removeprefix("data: ") for line in lines]
    assert done == "[DONE]"
    return [json.loads(each) for each in pieces]
