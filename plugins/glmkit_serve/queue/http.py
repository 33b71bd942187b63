"""The queue over HTTP: submit, look, wait, stream, cancel, retry.

Any process that reaches the database can serve any question: what a worker has said so far comes
through the database, too.
"""

from __future__ import annotations

import asyncio
import json
import logging
import time
from collections import Counter
from collections.abc import AsyncGenerator
from contextlib import aclosing, suppress
from typing import Annotated, Any

from fastapi import APIRouter, FastAPI, Query, Request
from fastapi.params import Path
from pydantic import BaseModel, ConfigDict, Field
from starlette.concurrency import run_in_threadpool
from starlette.responses import Response, StreamingResponse

from glmkit import GenerationOptions, GlmkitError

from ..http import HttpError, JsonResponse, dumped, error_response, guard
from ..limits import Door
from .database import DatabaseError
from .settings import QueueSettings
from .store import Question, Store, UnknownQuestionError
from .tables import STATES
from .worker import with_options

log = logging.getLogger(__name__)

ROOT = "/v1/queue"
_LONGEST_WAIT_S = 60.0
_ALIVE_S = 15.0
"""A stream says at least this often that it lives, as proxies close what is silent."""

Number = Annotated[int, Path(ge=1, le=2**63 - 1)]
Waited = Annotated[float, Query(ge=0, le=_LONGEST_WAIT_S)]
Limit = Annotated[int, Query(ge=1, le=1000)]


class Submission(BaseModel):
    """A question to put into the line."""

    model_config = ConfigDict(extra="forbid")

    question: str
    session: str | None = Field(None, description="Questions of one are answered in order.")
    model: str | None = Field(None, description="Who shall answer; none: the workers' choice.")
    options: dict[str, Any] | None = Field(None, description="max_tokens, temperature...")


class Watcher:
    """Looks for changes on behalf of everybody who waits, with one query a round.

    :param store: where to look.
    :param pause_s: between two rounds, in seconds.
    """

    def __init__(self, store: Store, pause_s: float) -> None:
        self._store, self._pause_s = store, pause_s
        self._wanted: Counter[int] = Counter()
        self._found: dict[int, Question | None] = {}
        self._round = asyncio.Event()
        self._task: asyncio.Task[None] | None = None

    async def follow(self, number: int) -> AsyncGenerator[Question, None]:
        """Yield a question once a round, until it is settled or gone."""
        self._wanted[number] += 1
        if self._task is None or self._task.done():
            self._task = asyncio.create_task(self._look())
        try:
            while True:
                await self._round.wait()
                if number not in self._found:
                    continue  # this round began before we came
                question = self._found[number]
                if question is None:
                    return
                yield question
                if question.settled:
                    return
        finally:
            self._wanted -= Counter([number])

    async def _look(self) -> None:
        while self._wanted:
            numbers = list(self._wanted)
            try:
                found = await run_in_threadpool(self._store.look, numbers)
            except DatabaseError as error:
                log.warning("%s; trying again", error)
            else:
                self._found = {number: found.get(number) for number in numbers}
                this, self._round = self._round, asyncio.Event()
                this.set()
            await asyncio.sleep(self._pause_s)


def router_of(store: Store, settings: QueueSettings) -> APIRouter:
    """Return the routes of a queue."""
    routes = _Routes(store, Watcher(store, settings.poll_s))
    router = APIRouter(prefix=ROOT, tags=["queue"], default_response_class=JsonResponse)
    one = "/questions/{number}"
    router.add_api_route("", routes.status, methods=["GET"])
    router.add_api_route("/questions", routes.submit, methods=["POST"], status_code=202)
    router.add_api_route("/questions", routes.listed, methods=["GET"])
    router.add_api_route(one, routes.look, methods=["GET"])
    router.add_api_route(one, routes.cancel, methods=["DELETE"])
    router.add_api_route(f"{one}/stream", routes.stream, methods=["GET"])
    router.add_api_route(f"{one}/retry", routes.retry, methods=["POST"])
    return router


class _Routes:
    """What happens at each path."""

    def __init__(self, store: Store, watcher: Watcher) -> None:
        self._store, self._watcher = store, watcher

    def submit(self, body: Submission) -> Response:
        """Put a question at the end of the line."""
        with_options(GenerationOptions(), body.options or {})
        number = self._store.submit(
            body.question, body.session, model=body.model, options=body.options
        )
        shown = self._told(number)
        headers = {"Location": f"{ROOT}/questions/{number}"}
        return JsonResponse(shown, status_code=202, headers=headers)

    def listed(self, state: str, limit: Limit = 100) -> Response:
        """List questions in a state, the latest first: ``dead`` above all."""
        if state not in STATES:
            raise HttpError(
                400, f"states are {', '.join(STATES)}, got {state!a:.80}", param="state"
            )
        found = [told(each) for each in self._store.listed(state, limit=limit)]
        return JsonResponse({"data": found})

    async def look(self, number: Number, wait: Waited = 0.0) -> Response:
        """Return a question, after ``wait`` seconds at most where it is not settled before."""
        question = await run_in_threadpool(self._store.get, number)
        if wait and not question.settled:
            question = await _settled(self._watcher, question, wait)
        ahead = await run_in_threadpool(self._store.ahead, question)
        return JsonResponse(told(question, ahead))

    async def stream(self, number: Number) -> Response:
        """Stream the answer as server-sent events."""
        question = await run_in_threadpool(self._store.get, number)
        ahead = await run_in_threadpool(self._store.ahead, question)
        events = events_of(self._watcher, question, ahead)
        return StreamingResponse(events, media_type="text/event-stream")

    def cancel(self, number: Number) -> Response:
        """Take a question back; a running answer is stopped."""
        if not self._store.cancel(number):
            raise HttpError(409, f"question {number} is {self._store.get(number).state} already")
        return JsonResponse(self._told(number))

    def retry(self, number: Number) -> Response:
        """Let a dead question be tried again."""
        if not self._store.retry([number]):
            state = self._store.get(number).state
            raise HttpError(409, f"question {number} is {state}; only dead ones are tried again")
        return JsonResponse(self._told(number))

    def _told(self, number: int) -> dict[str, Any]:
        question = self._store.get(number)
        return told(question, self._store.ahead(question))

    def status(self) -> Response:
        """Return how many questions there are in each state, which models are waited for, and how
        many workers there are for each.
        """
        waiting, workers = self._store.waiting_for(), self._store.presence.working()
        models = [{"model": name, "waiting": n} for name, n in waiting.items()]
        shown = {"counts": self._store.counts(), "models": models, "workers": workers}
        return JsonResponse(shown)


def add_queue(web: FastAPI, store: Store, settings: QueueSettings) -> None:
    """Serve a queue from ``web``, too."""
    web.include_router(router_of(store, settings))
    web.add_exception_handler(UnknownQuestionError, _gone)
    web.add_exception_handler(DatabaseError, _away)


def app_of(store: Store, settings: QueueSettings, door: Door) -> FastAPI:
    """Return an application that serves a queue and nothing else."""
    app = FastAPI(title="glmkit queue", docs_url=None, redoc_url=None)
    add_queue(app, store, settings)

    @app.get("/health")
    def health() -> Response:
        """Tell whether the database can be reached."""
        store.ping()
        return JsonResponse({"status": "ok"})

    guard(app, door)
    return app


async def _gone(request: Request, error: Exception) -> Response:
    return error_response(HttpError(404, str(error), code="not_found"))


async def _away(request: Request, error: Exception) -> Response:
    log.warning("%s", error)
    said = "the database of the queue cannot be reached; try again in a while"
    return error_response(HttpError(503, said, headers={"Retry-After": "2"}))


def told(question: Question, ahead: int | None = None) -> dict[str, Any]:
    """Return a question as clients see it.

    :param ahead: questions that wait before it, where somebody counted them.
    """
    names = ("id", "session", "model", "state", "question", "answer", "error", "finish_reason")
    shown = {name: getattr(question, name) for name in names}
    shown |= {name: getattr(question, name) for name in ("created", "started", "finished")}
    shown["attempts"] = question.attempts
    shown["partial"] = None if question.state == "done" else question.partial
    shown["ahead"] = ahead if question.state == "waiting" else None
    shown["sources"] = json.loads(question.sources) if question.sources else []
    tokens = (question.prompt_tokens, question.completion_tokens)
    if None not in tokens:
        shown["usage"] = dict(zip(("prompt_tokens", "completion_tokens"), tokens, strict=True))
    return shown


async def _settled(watcher: Watcher, question: Question, wait_s: float) -> Question:
    """Return the question once it is settled, or as it is when the time is over."""
    latest = [question]

    async def follow() -> None:
        async with aclosing(watcher.follow(question.id)) as rounds:
            async for found in rounds:
                latest[0] = found

    with suppress(asyncio.TimeoutError):
        await asyncio.wait_for(follow(), wait_s)
    return latest[0]


async def events_of(
    watcher: Watcher, question: Question, ahead: int
) -> AsyncGenerator[bytes, None]:
    """Yield what changes about a question: its state, more of the answer, at last all of it."""
    telling = Telling(question)
    yield _event({"id": question.id, "state": question.state, "ahead": ahead})
    spoke = time.monotonic()
    async with aclosing(watcher.follow(question.id)) as rounds:
        async for question in rounds:
            events = [_event(each) for each in telling.news(question)]
            if not events and time.monotonic() - spoke > _ALIVE_S:
                events = [b": still there\n\n"]
            for each in events:
                yield each
                spoke = time.monotonic()
    if not question.settled:
        error = GlmkitError(f"question {question.id} was removed")
        yield _event({"id": question.id, "error": str(error)})
    yield b"data: [DONE]\n\n"


class Telling:
    """Knows what a client was told of a question, and says what is new."""

    def __init__(self, question: Question) -> None:
        self._state, self._text = question.state, ""

    def news(self, question: Question) -> list[dict[str, Any]]:
        """Return the events since the last call."""
        events: list[dict[str, Any]] = []
        said = (question.answer if question.state == "done" else question.partial) or ""
        if not said.startswith(self._text):  # another worker began anew
            events.append({"id": question.id, "restart": True})
            self._text = ""
        if question.state != self._state:
            events.append({"id": question.id, "state": question.state})
            self._state = question.state
        if len(said) > len(self._text):
            events.append({"id": question.id, "text": said[len(self._text) :]})
            self._text = said
        return events


def _event(content: dict[str, Any]) -> bytes:
    return b"data: " + dumped(content) + b"\n\n"
