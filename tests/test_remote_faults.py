"""The openai engine's faults: what is asked again, and what an error says."""

from __future__ import annotations

import gzip
import socket
import time
from datetime import datetime, timedelta, timezone
from email.utils import format_datetime

import pytest
from chat_server import (
    HELLO,
    KEY,
    Act,
    error,
    events,
    one_line,
    whole,
)

from glmkit import (
    GenerationOptions,
    Message,
    Passage,
    Reply,
    Server,
)
from glmkit.errors import ServerError
from glmkit.remote import patience
from glmkit.remote.faults import FailingError, ShutError, TooLongError, retry_after
from glmkit.remote.model import RemoteModel

pytestmark = [
    pytest.mark.network,
    pytest.mark.allow_hosts(["127.0.0.1"]),
    pytest.mark.usefixtures("hurry"),
]


@pytest.fixture
def model(server):
    return RemoteModel("tiny", Server(server.url, api_key=KEY, timeout_s=5))


@pytest.mark.parametrize("act", [Act(500), Act(hang_up=True), error(429, "slow down"), Act(502)])
def test_what_may_pass_is_asked_again(model, server, act):
    server.acts += [act, act]
    assert model.reply(HELLO).text == "echo hello there"
    assert len(server.asked) == 3


def test_an_answer_cut_short_is_asked_again(model, server):
    server.acts.append(Act(body=whole("half"), hang_up=True))
    assert model.reply(HELLO).text == "echo hello there"


def test_silence_is_asked_again(server):
    model = RemoteModel("tiny", Server(server.url, timeout_s=0.2))
    server.acts.append(events(done=False, wait_for_leave=True))
    assert Reply.join(model.stream(HELLO)).text == "echo hello there"
    assert server.left.wait(5)


def test_what_does_not_pass_ends(server, monkeypatch):
    monkeypatch.setattr(patience, "TRIES", 4)
    model = RemoteModel("tiny", Server(server.url))
    server.always = lambda body: error(500, "out of memory")
    with pytest.raises(FailingError, match=r"500: out of memory; asked 4 times") as found:
        model.reply(HELLO)
    one_line(found)
    assert len(server.asked) == 4


def test_retry_after_is_honoured_in_seconds_and_as_a_date(model, server):
    server.acts.append(error(429, "slow down", headers={"Retry-After": "0.3"}))
    started = time.monotonic()
    assert model.reply(HELLO).text == "echo hello there"
    assert 0.3 <= time.monotonic() - started < 3
    soon = datetime.now(timezone.utc) + timedelta(seconds=90)
    assert 80 < (retry_after(format_datetime(soon)) or 0) <= 90
    assert retry_after("Wed, 21 Oct 2015 07:28:00 GMT") == 0
    assert retry_after("nonsense") is retry_after("inf") is retry_after(None) is None


def test_a_wait_beyond_all_patience_is_not_waited(server):
    model = RemoteModel("tiny", Server(server.url, patience_s=5))
    server.acts.append(error(429, "come tomorrow", headers={"Retry-After": "86400"}))
    with pytest.raises(FailingError, match="asks to wait 86400 s"):
        model.reply(HELLO)
    server.acts.append(error(429, "come never", headers={"Retry-After": "1e300"}))
    with pytest.raises(FailingError, match="asks to wait 31536000 s"):
        model.reply(HELLO)


REFUSALS = {
    "no key": (error(401, f"wrong key {KEY}"), ShutError, r"wrong key \*\*\*; set OPENAI_API_KEY"),
    "no access": (error(403, "not yours"), ShutError, "403: not yours"),
    "no money": (error(429, "You exceeded your current quota"), ShutError, "has nothing left"),
    "unknown": (error(404, "The model `x` does not exist."), ShutError, "it serves tiny"),
    "unknown, 400": (error(400, "Model Not Exist"), ShutError, "it serves tiny"),
    "field": (
        Act(400, {"detail": [{"loc": ["body", "top_k"], "msg": "Extra inputs are not permitted"}]}),
        ServerError,
        r"body.top_k: Extra inputs are not permitted; leave out top_k",
    ),
    "object": (
        Act(400, {"object": "error", "message": "bad", "code": 400}),
        ServerError,
        "answered 400: bad",
    ),
    "page": (Act(418, b"<html>tea</html>", kind="text/html"), ServerError, "answered 418"),
    "moved": (Act(301, headers={"Location": "https://b/?key=1"}), ShutError, "moved to https://b/"),
    "no JSON": (Act(body=b"<html>"), ServerError, "no JSON object.*base URL"),
    "no answer": (Act(body={"ok": True}), ServerError, "without choices"),
    "an error, 200": (
        Act(body={"error": {"message": "bad words", "code": 400}}),
        ServerError,
        "400: bad words",
    ),
}


@pytest.mark.parametrize(("act", "kind", "said"), REFUSALS.values(), ids=REFUSALS)
def test_refusals_say_what_the_server_said_and_what_to_do(model, server, act, kind, said):
    server.acts.append(act)
    with pytest.raises(kind, match=said) as found:
        model.reply(HELLO, GenerationOptions(top_k=3))
    assert server.url.removeprefix("http://") in one_line(found)
    assert len(server.asked) == 1


ECHOES = {
    "no JSON": Act(body=f"Bearer {KEY} at an unknown route".encode()),
    "cut by the end of what is quoted": Act(body=b"x" * 30 + KEY.encode()),
    "a stream of no JSON": events(f"data: {KEY} is bad\n\n".encode()),
    "no choices": events({"detail": f"{KEY} sleeps"}),
    "moved": Act(307, headers={"Location": f"http://x/{KEY}/v1"}),
    "refused": error(400, f"bad key {KEY}"),
    "an error in a stream": events({"error": {"message": KEY, "code": 400}}),
}


@pytest.mark.parametrize("login", [False, True], ids=["key", "password"])
@pytest.mark.parametrize("act", ECHOES.values(), ids=ECHOES)
def test_no_error_repeats_the_key_or_the_password(server, act, login):
    url = server.url.replace("//", f"//me:{KEY}@") if login else server.url
    model = RemoteModel("tiny", Server(url, None if login else KEY))
    server.acts.append(act)
    with pytest.raises(ServerError) as found:
        list(model.stream(HELLO))
    assert KEY[:5] not in one_line(found) and "***" in one_line(found)


def test_a_broken_answer_is_quoted_without_the_key(model, server, monkeypatch):
    monkeypatch.setattr(patience, "TRIES", 1)
    server.acts.append(Act(headers={f"{KEY} ": "1"}))
    with pytest.raises(FailingError, match=r"connection to .* broke") as found:
        model.reply(HELLO)
    one_line(found)


NOTHING = {
    "JSON where a stream was asked for": Act(body={"detail": "asleep"}),
    "an event": events({"detail": "asleep"}),
    "an event, then the end": events({"detail": "asleep"}, done=False),
    "counts only": events({"choices": [], "detail": "asleep"}),
}


@pytest.mark.parametrize("act", NOTHING.values(), ids=NOTHING)
def test_a_stream_without_choices_is_no_answer(model, server, act):
    server.acts.append(act)
    with pytest.raises(ServerError, match="without choices, but asleep; check") as found:
        list(model.stream(HELLO))
    one_line(found)
    server.acts.append(events())
    with pytest.raises(ServerError, match="without choices, but nothing"):
        list(model.stream(HELLO))


def test_compressed_answers_are_neither_asked_for_nor_unpacked(model, server):
    bomb = gzip.compress(gzip.compress(bytes(1 << 20)))
    packed = {"Content-Encoding": "gzip, gzip"}
    for ask in (model.reply, lambda messages: list(model.stream(messages))):
        server.acts.append(Act(body=bomb, headers=packed))
        with pytest.raises(ServerError, match="compresses its answers unasked"):
            ask(HELLO)
    assert {each["Accept-Encoding"] for each in server.headers} == {"identity"}
    server.acts.append(Act(400, bomb, headers=packed))
    with pytest.raises(ServerError, match="answered 400$"):
        model.reply(HELLO)


def test_a_server_without_counts_in_streams_is_asked_without(model, server):
    server.acts.append(error(400, "Unrecognized request argument: stream_options"))
    assert Reply.join(model.stream(HELLO)).text == "echo hello there"
    list(model.stream(HELLO))
    assert ["stream_options" in each for each in server.asked] == [True, False, False]


def test_models_that_call_max_tokens_otherwise(model, server):
    server.acts.append(
        error(400, "Unsupported parameter: 'max_tokens'. Use 'max_completion_tokens' instead.")
    )
    model.reply(HELLO, GenerationOptions(max_tokens=5))
    model.reply(HELLO, GenerationOptions(max_tokens=6))
    assert [each.get("max_completion_tokens") for each in server.asked] == [None, 5, 6]


def test_a_chat_that_has_grown_too_long_forgets_its_oldest_turns(model, server):
    def full(body):
        long = sum(len(each["content"]) for each in body["messages"]) > 60
        return error(400, "This model's maximum context length is 60 tokens") if long else None

    server.always = full
    turns = [Message("system", "be brief")]
    for number in range(6):
        turns += [Message("user", f"question {number}"), Message("assistant", "x" * 10)]
    passages = (Passage("p" * 70, "a"), Passage("short", "b", score=0.5))
    reply = model.reply([*turns, Message("user", "now?", passages=passages)])
    assert reply.sources == () and reply.text == "echo now?"
    kept = [each["content"] for each in server.asked[-1]["messages"]]
    assert kept[0] == "be brief" and kept[-1] == "now?"
    with pytest.raises(TooLongError, match="shorten the question"):
        model.reply([Message("user", "y" * 100)])


def test_nobody_there_is_said_at_once():
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        url = f"http://user:{KEY}@127.0.0.1:{unused.getsockname()[1]}/v1?key={KEY}"
        with pytest.raises(ShutError, match=r"cannot reach http://127.0.0.1:\d+/v1 .*running") as e:
            RemoteModel("tiny", Server(url)).reply(HELLO)
    one_line(e)
