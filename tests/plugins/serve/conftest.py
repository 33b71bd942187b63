"""Fixtures of the tests of serving."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from pathlib import Path

import mariadb
import postgres
import pytest
from queue_parts import Queue, open_at, opened

_NUMBERS = itertools.count()
_SERVERS = {"postgresql": "postgres_url", "mysql": "mysql_url"}


@pytest.fixture(scope="session")
def postgres_url():
    """Run a PostgreSQL server of our own, where one is installed."""
    with postgres.running() as url:
        yield url


@pytest.fixture(scope="session")
def mysql_url():
    """Run a MariaDB server of our own, where one is installed."""
    with mariadb.running() as url:
        yield url


@pytest.fixture(params=["sqlite", "postgresql", "mysql"])
def new_queue(request: pytest.FixtureRequest, tmp_path: Path):
    """Return what makes empty queues with settings, in each kind of database."""
    queues: list[Queue] = []

    def make(**settings: object) -> Queue:
        if request.param == "sqlite":
            queue = open_at(tmp_path / f"q{len(queues)}.db", **settings)
        else:
            url = request.getfixturevalue(_SERVERS[request.param])
            queue = opened(url, **{"table": f"q{next(_NUMBERS)}", **settings})
        queues.append(queue)
        return queue

    yield make
    for queue in queues:
        queue.database.close()


@pytest.fixture
def queue(new_queue: Callable[..., Queue]) -> Queue:
    """Return an empty queue."""
    return new_queue()


@pytest.fixture
def model():
    """Return what answers on a page without a browser."""
    from web_parts import Scripted

    return Scripted({"long": "word " * 300, "twice": "again " * 2})


@pytest.fixture
def page(tmp_path: Path, model: object):
    """Return the parts of a page."""
    from web_parts import make_page

    return make_page(tmp_path / "home", model)


@pytest.fixture
def visit(page):
    """Return a visit to the page, known as somebody."""
    return page.visits.of("somebody")
