"""How fast a server is asked: at its pace, within rates, and patiently."""

from __future__ import annotations

import threading
import time
from collections import Counter
from itertools import count
from types import SimpleNamespace

import pytest
from chat_server import (
    HELLO,
    KEY,
    Act,
    ask,
    error,
    row_of,
)

from glmkit import GenerationOptions, Reply, Server
from glmkit.errors import ServerError
from glmkit.remote import pace, patience
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


def test_requests_that_fail_give_their_tokens_back(server):
    model = RemoteModel("tiny", Server(server.url, tokens_per_minute=60 / 0.01))
    server.acts += [error(500, "x"), Act(hang_up=True), error(400, "bad words")]
    started = time.monotonic()
    options = GenerationOptions(max_tokens=500)
    with pytest.raises(ServerError, match="bad words"):
        model.reply(HELLO, options)
    assert model.reply(HELLO, options).text == "echo hello there"
    assert time.monotonic() - started < 4


def test_the_pace_halves_once_for_all_that_began_before_and_grows_again():
    own = Pace(16)
    began = time.monotonic()
    for _ in range(16):
        own.refused(began)
    assert own.limit == 8
    own.refused(time.monotonic())
    assert own.limit == 4
    for _ in range(200):
        own.answered()
    assert own.limit == 16
    own.stop()
    with pytest.raises(StoppedError), own.turn():
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
    monkeypatch.setattr(pace, "SILENT_S", 0.1)
    model = RemoteModel("tiny", Server(server.url, api_key=KEY))
    server.acts += [error(429, f"slow {KEY}", headers={"Retry-After": "0.5"})] * 4
    assert len(list(model.answers(map(ask, range(8)), concurrency=4))) == 8
    told = [each.getMessage() for each in caplog.records if each.name == pace.__name__]
    assert 1 <= len(told) < 4
    assert "429: slow ***; asking again in" in told[0]


def test_a_wait_beyond_all_patience_costs_one_row_and_holds_the_others_no_longer(
    server, monkeypatch, caplog
):
    monkeypatch.setattr(pace, "SILENT_S", 0.1)
    model = RemoteModel("tiny", Server(server.url, patience_s=0.3))
    server.acts.append(error(429, "come tomorrow", headers={"Retry-After": "3600"}))
    started = time.monotonic()
    found = dict(model.answers(map(ask, range(8)), concurrency=2))
    assert 0.3 <= time.monotonic() - started < 3
    (failed,) = [each for each in found.values() if not isinstance(each, Reply)]
    assert "asks to wait 3600 s" in str(failed) and len(found) == 8
    assert "come tomorrow; asking again in 0 s" in caplog.messages[0]


def test_waiting_ends_although_its_time_comes_between_two_looks_at_the_clock(monkeypatch):
    looks = count()
    own = Pace(4)
    own.refused(0.0, 10.0)
    clock = SimpleNamespace(monotonic=lambda: began + (9.9 if next(looks) == 0 else 10.1))
    began = time.monotonic()
    monkeypatch.setattr(pace, "time", clock)
    monkeypatch.setattr(own, "_change", Unwaiting())
    with own.turn():
        pass


class Unwaiting(threading.Condition):
    """Lets nobody wait for a change that never comes."""

    def wait(self, timeout: float | None = None) -> bool:
        assert timeout is not None
        return False


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
