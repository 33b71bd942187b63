"""How fast a server is asked: at its pace, within rates, and patiently."""

from __future__ import annotations

import time
from collections import Counter

import pytest
from chat_server import (
    KEY,
    ask,
    error,
    row_of,
)

from glmkit import Reply, Server
from glmkit.remote import patience
from glmkit.remote.faults import ShutError, TransientError
from glmkit.remote.model import RemoteModel
from glmkit.remote.pace import Pace, Rate, StoppedError

pytestmark = [
    pytest.mark.network,
    pytest.mark.allow_hosts(["127.0.0.1"]),
    pytest.mark.usefixtures("hurry"),
]


@pytest.fixture
def model(server):
    return RemoteModel("tiny", Server(server.url))


def test_the_pace_halves_once_for_all_that_began_before_and_grows_again():
    pace = Pace(16)
    began = time.monotonic()
    for _ in range(16):
        pace.refused(began, None)
    assert pace.limit == 8
    pace.refused(time.monotonic(), None)
    assert pace.limit == 4
    for _ in range(200):
        pace.answered()
    assert pace.limit == 16
    pace.stop()
    with pytest.raises(StoppedError), pace.turn():
        pass


def test_a_server_that_was_there_is_waited_for_longer(monkeypatch):
    monkeypatch.setattr(patience, "LONGEST_PAUSE_S", 0.001)
    tries = {}
    for heard in (True, False):
        own = patience.Patience(Pace(1), 0.3, heard=lambda heard=heard: heard)
        tries[heard] = 0
        with pytest.raises(ShutError):
            while True:
                tries[heard] += 1
                own.wait(TransientError("cannot reach it", gone=True))
    assert tries[False] == patience.TRIES_UNHEARD < patience.TRIES < tries[True]


def test_a_rate_spreads_an_amount_evenly():
    rate = Rate(60)
    first = rate.reserve(2)
    assert rate.reserve(1) - first == pytest.approx(2, abs=0.01)
    rate.correct(-1)
    assert rate.reserve(1) - first == pytest.approx(2, abs=0.01)


def test_requests_keep_to_their_rate(server):
    model = RemoteModel("tiny", Server(server.url, requests_per_minute=60 / 0.04))
    started = time.monotonic()
    assert len(list(model.answers(map(ask, range(8)), concurrency=8))) == 8
    assert 7 * 0.04 <= time.monotonic() - started < 5


def test_tokens_keep_to_their_rate(server):
    model = RemoteModel("tiny", Server(server.url, tokens_per_minute=60 / 0.005))
    started = time.monotonic()
    found = list(model.answers((ask(at, max_tokens=20) for at in range(8)), concurrency=1))
    used = sum(each.usage.prompt_tokens + each.usage.completion_tokens for _, each in found[:-1])
    assert used == 7 * 10
    assert used * 0.005 * 0.9 <= time.monotonic() - started < 5


def test_a_long_wait_is_told_but_not_by_every_request(server, monkeypatch, caplog):
    monkeypatch.setattr(patience, "SILENT_S", 0.1)
    model = RemoteModel("tiny", Server(server.url, api_key=KEY))
    server.acts += [error(429, f"slow {KEY}", headers={"Retry-After": "0.5"})] * 4
    assert len(list(model.answers(map(ask, range(8)), concurrency=4))) == 8
    told = [each.getMessage() for each in caplog.records if each.name == patience.__name__]
    assert 1 <= len(told) < 4
    assert "429: slow ***; asking again in" in told[0]


def test_a_busy_server_gets_fewer_requests_and_every_row_is_answered(model, server):
    server.pause_s = 0.01
    refused = Counter[int]()

    def busy(body):
        if server.running <= 3:
            return None
        refused[row_of(body)] += 1
        return error(429, "too many", headers={"Retry-After": "0.01"})

    server.always = busy
    found = dict(model.answers(map(ask, range(150)), concurrency=24))
    assert all(isinstance(each, Reply) for each in found.values()) and len(found) == 150
    assert refused and max(refused.values()) < patience.TRIES
    assert sum(refused.values()) < 150
