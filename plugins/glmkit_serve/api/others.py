"""Embeddings, pictures, the list of models, and how the server is."""

from __future__ import annotations

import base64
import threading
import time
from collections.abc import Callable, Generator
from contextlib import closing
from functools import partial
from typing import TYPE_CHECKING, Any, Generic, TypeVar

import anyio
from anyio import to_thread
from fastapi import APIRouter, Request
from starlette.responses import Response

from glmkit import BusyError, DrawOptions, TimeLimitError, UnknownNameError, UsageError

from ..http import JsonResponse, UnsupportedError
from .meter import CONTENT_TYPE, Meter
from .odds import Json
from .requests import DEFAULT, EmbeddingRequest, ImageRequest
from .waiting import unless_left

if TYPE_CHECKING:
    import numpy as np

    from glmkit import Encoder, Picture, Progress

    from .served import Serving

Result = TypeVar("Result")

_TEXTS = 2048
"""Texts of one request, as OpenAI's API has it."""
_AT_ONCE = 32
"""Texts that are embedded before it is looked whether the client is still there."""
_WAITING = 16
"""Requests for embeddings or pictures that may wait for each other."""


def router(serving: Serving, meter: Meter) -> APIRouter:
    """Return the routes."""
    routes, aside = APIRouter(), _Aside(serving.settings.timeout_s)

    @routes.post("/v1/embeddings", tags=["embeddings"])
    async def embeddings(body: EmbeddingRequest, request: Request) -> Response:
        """Embed texts."""
        body.check()
        texts = body.texts()
        if len(texts) > _TEXTS:
            raise UsageError(f"one request may embed {_TEXTS} texts, got {len(texts)}")
        work = partial(_embedded, serving, body, texts)
        return JsonResponse(await unless_left(request, aside.run(work)))

    @routes.post("/v1/images/generations", tags=["images"])
    async def images(body: ImageRequest, request: Request) -> Response:
        """Draw pictures."""
        body.check()
        if body.response_format == "url":
            raise UnsupportedError("response_format", "pictures come as b64_json")
        work = partial(_drawn, serving, body, _draw_options(body))
        return JsonResponse(await unless_left(request, aside.run(work)))

    @routes.get("/v1/models", tags=["models"])
    async def models() -> Response:
        """List what can be asked."""
        told = [_model(serving, name) for name in serving.models]
        return JsonResponse({"object": "list", "data": [*told, _encoder(serving)]})

    @routes.get("/v1/models/{name:path}", tags=["models"])
    async def model(name: str) -> Response:
        """Tell of one model."""
        if name == serving.encoder_id and name not in serving.by_name:
            return JsonResponse(_encoder(serving))
        return JsonResponse(_model(serving, serving.named(name).name))

    @routes.get("/health", tags=["server"])
    async def health() -> Response:
        """Tell whether the server takes questions."""
        told = _health(serving)
        return JsonResponse(told, status_code=200 if told["status"] == "ok" else 503)

    @routes.get("/metrics", tags=["server"])
    async def metrics() -> Response:
        """Count what was done, for Prometheus."""
        return Response(meter.text(), media_type=CONTENT_TYPE)

    return routes


def _health(serving: Serving) -> Json:
    ended = [name for name, runs in serving.beside.items() if not runs()]
    status = f"ended: {', '.join(ended)}" if ended else "ok"
    if serving.draining:
        status = "shutting down"
    told: Json = {"status": status, "model": serving.live.name}
    return told | {"running": serving.live.running, "waiting": serving.live.waiting}


def _model(serving: Serving, name: str) -> Json:
    served = serving.models[name]
    return _listed(serving, name, served.kind, served.root)


def _encoder(serving: Serving) -> Json:
    """Tell what embeds, which is loaded only when it is needed."""
    return _listed(serving, serving.encoder_id, "encoder", serving.encoder_id)


def _listed(serving: Serving, name: str, kind: str, root: str) -> Json:
    told = {"id": name, "object": "model", "created": serving.created, "owned_by": "glmkit"}
    return told | {"kind": kind, "root": root}


class _Aside:
    """Runs what blocks in threads, some at a time, and has it stop when nobody waits any more."""

    def __init__(self, timeout_s: float) -> None:
        self._timeout_s = timeout_s
        self._places = threading.BoundedSemaphore(_WAITING)
        self._taken: set[_Job[Any]] = set()

    async def run(self, work: Callable[[threading.Event], Result]) -> Result:
        """Return what ``work`` returns; it is given what tells it to stop.

        :raises BusyError: if as many wait as may.
        :raises TimeLimitError: if it takes longer than it may.
        """
        if not self._places.acquire(blocking=False):
            raise BusyError(f"{_WAITING} such requests wait already; ask again in a while")
        job = _Job(work, self._freed)
        self._taken.add(job)
        try:
            with anyio.move_on_after(self._timeout_s):
                return await to_thread.run_sync(job.run, abandon_on_cancel=True)
            raise TimeLimitError(f"no answer within {self._timeout_s:g} s")
        finally:
            job.leave()

    def _freed(self, job: _Job[Any]) -> None:
        self._taken.discard(job)
        self._places.release()

    @property
    def idle(self) -> bool:
        """Whether no thread works."""
        return not self._taken


class _Job(Generic[Result]):
    """Work in a thread, whose place is free when the thread has ended, not when its asker left."""

    def __init__(
        self, work: Callable[[threading.Event], Result], free: Callable[[_Job[Any]], None]
    ) -> None:
        self._work, self._free = work, free
        self._stop, self._begins = threading.Event(), threading.Lock()

    def run(self) -> Result:
        """Do the work, in whatever thread this is."""
        if not self._begins.acquire(blocking=False):
            raise TimeLimitError(_NOBODY)
        try:
            return self._work(self._stop)
        finally:
            self._free(self)

    def leave(self) -> None:
        """Want no more of it; a thread that has not begun never will."""
        self._stop.set()
        if self._begins.acquire(blocking=False):
            self._free(self)


def _embedded(
    serving: Serving, body: EmbeddingRequest, texts: list[str], stop: threading.Event
) -> Json:
    import numpy as np

    encoder = serving.encoder
    known = [DEFAULT, serving.encoder_id, encoder.name]
    if body.model not in known:
        raise UnknownNameError("encoder", body.model, known)
    if body.dimensions not in (None, encoder.dimensions):
        raise UnsupportedError("dimensions", f"{encoder.name} has {encoder.dimensions}")
    vectors = []
    for at in range(0, len(texts), _AT_ONCE):
        if stop.is_set():
            raise TimeLimitError(_NOBODY)
        vectors.append(encoder.encode(texts[at : at + _AT_ONCE], kind=body.input_type))
    told = [
        {"object": "embedding", "index": at, "embedding": _written(each, body.encoding_format)}
        for at, each in enumerate(np.concatenate(vectors))
    ]
    tokens = _tokens(encoder, texts)
    return {
        "object": "list",
        "data": told,
        "model": encoder.name,
        "usage": {"prompt_tokens": tokens, "total_tokens": tokens},
    }


def _written(vector: np.ndarray, encoding: str | None) -> list[float] | str:
    if encoding == "base64":
        return base64.b64encode(vector.astype("<f4").tobytes()).decode("ascii")
    return [float(each) for each in vector]


def _tokens(encoder: Encoder, texts: list[str]) -> int:
    """Return how many tokens texts have; of an encoder that does not say, the words."""
    count = getattr(encoder, "token_ids", str.split)
    return sum(len(count(each)) for each in texts)


def _draw_options(body: ImageRequest) -> DrawOptions:
    size = None
    if body.size not in (None, "auto"):
        width, _, height = (body.size or "").partition("x")
        if not (width.isascii() and height.isascii() and width.isdigit() and height.isdigit()):
            raise UsageError(f"size must be WIDTHxHEIGHT or auto, got {body.size!r}")
        size = (int(width), int(height))
    return DrawOptions(
        negative=body.negative_prompt or "",
        size=size,
        steps=body.steps,
        guidance=body.guidance,
        seed=body.seed,
        count=body.n or 1,
    )


def _drawn(
    serving: Serving, body: ImageRequest, options: DrawOptions, stop: threading.Event
) -> Json:
    name = None if body.model in (None, DEFAULT) else body.model
    with serving.image_model(name) as model:
        pictures = _finished(model.draw(body.prompt, options), stop)
    told = [
        {
            "b64_json": base64.b64encode(each.png).decode("ascii"),
            "revised_prompt": each.prompt,
            "seed": each.seed,
        }
        for each in pictures
    ]
    return {"created": int(time.time()), "model": model.name, "data": told}


def _finished(
    work: Generator[Progress, None, list[Picture]], stop: threading.Event
) -> list[Picture]:
    """Run a drawing to its end, unless it is to stop."""
    with closing(work):
        while not stop.is_set():
            try:
                next(work)
            except StopIteration as ended:
                pictures: list[Picture] = ended.value
                return pictures
    raise TimeLimitError(_NOBODY)


_NOBODY = "nobody waits for this any more"
