"""The queue over HTTP, through the application itself, with and without a worker behind it."""

from __future__ import annotations

import asyncio
import json
import threading
import time
from collections.abc import Callable

import pytest
from queue_parts import Queue, open_at, reply
from starlette.testclient import TestClient

from glmkit.live import Live
from glmkit.testing import EchoModel
from glmkit_serve.api.served import Served
from glmkit_serve.limits import Door
from glmkit_serve.queue.http import Telling, Watcher, app_of, events_of
from glmkit_serve.queue.worker import Worker

ROOT = "/v1/queue"
ALL = f"{ROOT}/questions"


@pytest.fixture
def queue(tmp_path):
    queue = open_at(tmp_path / "q.db", max_waiting=3, max_chars=1000)
    yield queue
    queue.database.close()


@pytest.fixture
def client(queue: Queue):
    with TestClient(app_of(queue.store, queue.settings, Door())) as client:
        yield client


@pytest.fixture
def worker(queue: Queue):
    live = Live(EchoModel())
    worker = Worker(queue.database, queue.settings, {"echo": Served("echo", "chat", live)})
    thread = threading.Thread(target=worker.run)
    thread.start()
    yield worker
    worker.stop()
    thread.join()
    live.close()


def events(response) -> list[dict]:
    lines = [line[6:] for line in response.text.splitlines() if line.startswith("data: ")]
    assert lines[-1] == "[DONE]"
    return [json.loads(line) for line in lines[:-1]]


def test_a_question_goes_in_and_its_answer_comes_out(client, worker):
    asked = client.post(ALL, json={"question": "湖 and sea", "session": "anna"})
    assert asked.status_code == 202 and asked.json()["state"] in ("waiting", "running", "done")
    found = client.get(asked.headers["location"], params={"wait": 20}).json()
    assert (found["state"], found["answer"], found["session"]) == ("done", "湖 and sea", "anna")
    assert found["usage"] == {"prompt_tokens": 3, "completion_tokens": 3}
    assert client.get(ROOT).json()["counts"]["done"] == 1


def test_waiting_comes_to_an_end(client):
    number = client.post(ALL, json={"question": "q"}).json()["id"]
    began = time.monotonic()
    found = client.get(f"{ALL}/{number}", params={"wait": 0.1}).json()
    assert found["state"] == "waiting" and time.monotonic() - began < 15
    assert found["ahead"] == 0 and found["answer"] is None


def test_an_answer_is_told_as_it_grows_even_from_its_start_again(queue):
    number = queue.store.submit("q")
    telling = Telling(queue.store.get(number))

    def news():
        return [
            {name: value for name, value in each.items() if name != "id"}
            for each in telling.news(queue.store.get(number))
        ]

    assert news() == []
    first = queue.take()
    queue.leases.renew([(first, "A ri")])
    assert news() == [{"state": "running"}, {"text": "A ri"}]
    queue.leases.renew([(first, "A river")])
    assert news() == [{"text": "ver"}]
    queue.leases.give_back(first)
    assert news() == [{"restart": True}, {"state": "waiting"}]
    second = queue.take()
    queue.leases.renew([(second, "Ice")])
    assert news() == [{"state": "running"}, {"text": "Ice"}]
    queue.leases.settle(second, reply("Ice flows."))
    assert news() == [{"state": "done"}, {"text": " flows."}]
    assert news() == []


def followed(queue: Queue, number: int, change: Callable[[], object]) -> list[dict]:
    """Return what a stream tells when something happens after its first event."""

    async def follow() -> list[bytes]:
        stream = events_of(Watcher(queue.store, 0.01), queue.store.get(number), 0)
        told = [await anext(stream)]
        change()
        return told + [each async for each in stream]

    told = asyncio.run(follow())
    assert told.pop() == b"data: [DONE]\n\n"
    return [json.loads(each.removeprefix(b"data: ")) for each in told]


def test_a_settled_question_is_streamed_at_once(queue, client):
    number = queue.store.submit("q")
    queue.leases.settle(queue.take(), reply("a"))
    assert {"id": number, "text": "a"} in events(client.get(f"{ALL}/{number}/stream"))


def test_cancelling_ends_the_stream(queue, client):
    number = queue.store.submit("q")
    queue.leases.renew([(queue.take(), "half")])
    told = followed(queue, number, lambda: client.delete(f"{ALL}/{number}"))
    assert told[-1] == {"id": number, "text": "half"}
    assert told[-2] == {"id": number, "state": "cancelled"}
    assert client.delete(f"{ALL}/{number}").status_code == 409


def test_a_question_that_is_removed_ends_its_stream(queue):
    number = queue.store.submit("q")
    told = followed(queue, number, lambda: queue.sql("DELETE FROM {table}"))
    assert told[-1]["error"] == f"question {number} was removed"


def test_dead_questions_are_listed_and_tried_again(queue, client):
    number = queue.store.submit("q")
    assert client.post(f"{ALL}/{number}/retry").status_code == 409
    queue.leases.fail(queue.take(), "no luck", final=True)
    (dead,) = client.get(ALL, params={"state": "dead"}).json()["data"]
    assert (dead["id"], dead["error"]) == (number, "no luck")
    assert client.post(f"{ALL}/{number}/retry").json()["state"] == "waiting"


def test_a_full_queue_says_when_to_come_again(client):
    for _ in range(3):
        client.post(ALL, json={"question": "q", "model": "big"})
    refused = client.post(ALL, json={"question": "q"})
    assert refused.status_code == 429 and refused.headers["retry-after"]
    assert refused.json()["error"]["code"] == "queue_full"
    assert client.get(ROOT).json()["models"] == [{"model": "big", "waiting": 3}]


@pytest.mark.parametrize(
    ("method", "path", "body", "status"),
    [
        ("GET", "/99", None, 404),
        ("GET", f"/{2**63}", None, 400),
        ("GET", "/x", None, 400),
        ("GET", "/99/stream", None, 404),
        ("DELETE", "/99", None, 404),
        ("POST", "/99/retry", None, 404),
        ("GET", "?state=lost", None, 400),
        ("GET", "?state=dead&limit=0", None, 400),
        ("POST", "", {"question": ""}, 400),
        ("POST", "", {"question": "x" * 1001}, 400),
        ("POST", "", {"question": "q", "nonsense": 1}, 400),
        ("POST", "", {"question": "q", "session": "a\0"}, 400),
        ("POST", "", {"question": "q", "options": {"temprature": 1}}, 400),
        ("POST", "", {"question": "q", "options": {"seed": 2**70}}, 400),
    ],
)
def test_what_cannot_be_is_said_in_the_servers_own_shape(client, method, path, body, status):
    answer = client.request(method, ALL + path, json=body)
    assert answer.status_code == status and answer.json()["error"]["message"]


def test_names_nobody_answers_under_are_refused_where_that_is_known(queue, client):
    queue.store.presence.announce("w", ["default", "docs"])
    answer = client.post(ALL, json={"question": "q", "model": "dosc"})
    assert answer.status_code == 404 and "'docs'" in answer.json()["error"]["message"]
    assert client.post(ALL, json={"question": "q", "model": "docs"}).status_code == 202
    assert client.get(ROOT).json()["workers"] == {"default": 1, "docs": 1}


def test_keys_guard_the_queue(queue):
    with TestClient(app_of(queue.store, queue.settings, Door(keys=("secret",)))) as client:
        assert client.get(ROOT).status_code == 401
        assert client.get(ROOT, headers={"Authorization": "Bearer secret"}).status_code == 200
        assert client.get("/health").status_code == 200


def test_a_database_that_is_away_is_said_without_its_address(queue, client):
    queue.sql("DROP TABLE {table}")
    answer = client.get(ROOT)
    assert answer.status_code == 503 and answer.headers["retry-after"]
    assert "q.db" not in answer.text
