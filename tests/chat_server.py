"""A stand-in for servers that speak OpenAI's protocol, on the loopback address, with faults."""

from __future__ import annotations

import json
import select
import socket
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from typing import Any

import pytest
from loopback import served

from glmkit import Ask, GenerationOptions, Message
from glmkit.errors import GlmkitError

Body = dict[str, Any]

KEY = "sk-very-secret-0123456789"
HELLO = [{"role": "user", "content": "hello there"}]


@dataclass(frozen=True)
class Act:
    """What to do with one request instead of a good answer."""

    status: int = 200
    body: Any = None
    """Sent as JSON, or as it is where it is bytes."""
    headers: dict[str, str] = field(default_factory=dict)
    kind: str = "application/json"
    hang_up: bool = False
    """Close the connection after the body, or at once, in the middle of what was promised."""
    wait_for_leave: bool = False
    """Say nothing more until the client goes; note that it did."""


def error(status: int, message: str, **more: Any) -> Act:
    return Act(status, {"error": {"message": message}}, **more)


def events(*pieces: Any, done: bool = True, **more: Any) -> Act:
    """Return a streamed answer: JSON pieces, or bytes as they are."""
    whole = b"".join(
        each if isinstance(each, bytes) else b"data: " + json.dumps(each).encode() + b"\n\n"
        for each in pieces
    )
    return Act(body=whole + (b"data: [DONE]\n\n" if done else b""), kind=STREAM, **more)


STREAM = "text/event-stream; charset=utf-8"


def says(text: str | None = None, finish: str | None = None, **delta: Any) -> Body:
    """Return one piece of a streamed answer."""
    said = {"content": text, **delta} if text is not None else delta
    return {"choices": [{"index": 0, "delta": said, "finish_reason": finish}], "usage": None}


def whole(text: str | None, finish: str = "stop", **message: Any) -> Body:
    """Return an answer in one piece."""
    said = {"role": "assistant", "content": text, **message}
    return {
        "choices": [{"index": 0, "message": said, "finish_reason": finish}],
        "usage": {"prompt_tokens": 7, "completion_tokens": len((text or "").split())},
    }


@dataclass
class ChatServer:
    """What it serves, what goes wrong, and what it was asked."""

    url: str = ""
    models: list[str] = field(default_factory=lambda: ["tiny"])
    listing: Any = None
    """Sent instead of the list of models."""
    acts: deque[Act] = field(default_factory=deque)
    """What to do with the next requests, one each."""
    always: Callable[[Body], Act | None] = lambda body: None
    """What to do with every request; None answers it."""
    pause_s: float = 0.0
    base: str = "/v1"
    asked: list[Body] = field(default_factory=list)
    headers: list[dict[str, str]] = field(default_factory=list)
    connections: int = 0
    running: int = 0
    peak: int = 0
    left: threading.Event = field(default_factory=threading.Event)
    lock: threading.Lock = field(default_factory=threading.Lock)

    def contents(self) -> list[str]:
        """Return the last message of each request."""
        return [each["messages"][-1]["content"] for each in self.asked]


class _Handler(BaseHTTPRequestHandler):
    state: ChatServer
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True

    def log_message(self, *args: object) -> None:
        pass

    def setup(self) -> None:
        super().setup()
        with self.state.lock:
            self.state.connections += 1

    def do_GET(self) -> None:
        if self.path.partition("?")[0] == self.state.base + "/models":
            listed = [{"id": each, "object": "model"} for each in self.state.models]
            self._act(Act(body=self.state.listing or {"object": "list", "data": listed}))
        else:
            self._act(Act(404, {"detail": "Not Found"}))

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        if self.path.partition("?")[0] != self.state.base + "/chat/completions":
            self._act(Act(404, {"detail": "Not Found"}))
            return
        with self.state.lock:
            self.state.asked.append(body)
            self.state.headers.append(dict(self.headers))
            self.state.running += 1
            self.state.peak = max(self.state.peak, self.state.running)
            act = self.state.acts.popleft() if self.state.acts else None
        try:
            time.sleep(self.state.pause_s)
            self._act(act or self.state.always(body) or _answer(body))
        except ConnectionError:
            self.state.left.set()
        finally:
            with self.state.lock:
                self.state.running -= 1

    def _act(self, act: Act) -> None:
        body = act.body if isinstance(act.body, bytes) else json.dumps(act.body).encode()
        if act.body is None:
            body = b""
        if act.hang_up and not body:
            self._hang_up()
            return
        streamed = act.kind == STREAM
        self.send_response(act.status)
        for name, value in act.headers.items():
            self.send_header(name, value)
        self.send_header("Content-Type", act.kind)
        if streamed:
            self.send_header("Connection", "close")
        else:
            self.send_header("Content-Length", str(len(body) + 10 * act.hang_up))
        self.end_headers()
        self.wfile.write(body)
        self.wfile.flush()
        if act.wait_for_leave:
            self._note_leaving()
        if act.hang_up:
            self._hang_up()

    def _note_leaving(self) -> None:
        self.close_connection = True
        readable, _, _ = select.select([self.connection], [], [], 10)
        if readable and not self.connection.recv(1, socket.MSG_PEEK):
            self.state.left.set()

    def _hang_up(self) -> None:
        self.close_connection = True
        with suppress(OSError):  # the client was faster
            self.connection.shutdown(socket.SHUT_RDWR)


def _answer(body: Body) -> Act:
    """Repeat the last message, in a stream where that is asked for."""
    text = "echo " + str(body["messages"][-1]["content"])
    if not body.get("stream"):
        return Act(body=whole(text))
    words: Sequence[str] = text.split(" ")
    pieces = [says(("" if at == 0 else " ") + each) for at, each in enumerate(words)]
    usage = {"choices": [], "usage": {"prompt_tokens": 7, "completion_tokens": len(words)}}
    asked = body.get("stream_options", {}).get("include_usage")
    return events(*pieces, says(finish="stop"), *([usage] if asked else []))


@contextmanager
def serve() -> Iterator[ChatServer]:
    """Run a stand-in until the block ends."""
    state = ChatServer()
    with served(type("Handler", (_Handler,), {"state": state})) as state.url:
        yield state


def one_line(error: pytest.ExceptionInfo[GlmkitError]) -> str:
    """Return what an error says, having seen that it is one line without the key."""
    said = str(error.value)
    assert "\n" not in said and KEY not in said
    return said


def prompts(folder: Path, number: int) -> Path:
    """Write a file of prompts: row 0, row 1, ..."""
    source = folder / "in.jsonl"
    source.write_text("".join(json.dumps({"prompt": f"row {at}"}) + "\n" for at in range(number)))
    return source


def written(path: Path) -> dict[int, dict]:
    """Return the rows of an output by their number, none of them there twice."""
    found = [json.loads(line) for line in path.read_text("utf-8").splitlines()]
    assert len({each["glmkit"]["index"] for each in found}) == len(found)
    return {each["glmkit"]["index"]: each for each in found}


def ask(key: int, **options: object) -> Ask:
    return Ask(key, [Message("user", f"row {key}")], GenerationOptions(**options))  # type: ignore[arg-type]


def row_of(body: dict) -> int:
    return int(body["messages"][-1]["content"].removeprefix("row "))
