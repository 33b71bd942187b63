"""``/v1/chat/completions`` and ``/v1/completions``."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator, Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING

from fastapi import APIRouter, Request
from starlette.responses import Response

from glmkit import GenerationOptions, UsageError

from ..http import JsonResponse, as_http, dumped, error_body
from .odds import Json
from .replies import ChatWriter, Choice, TextWriter
from .requests import ChatRequest, CompletionRequest
from .waiting import EventStream, Opener, first_of, pieces, unless_left

if TYPE_CHECKING:
    from glmkit import Chunk, MessageLike
    from glmkit.live import Ticket

    from .meter import Meter
    from .served import Served, Serving

_SEEDS = 2**63


@dataclass(frozen=True)
class Asked:
    """What one request asks of a model: one or several answers."""

    served: Served
    openers: Sequence[Opener]
    writer: ChatWriter | TextWriter
    stream: bool
    counts: bool
    """Whether a stream ends in a count of its tokens."""


def router(serving: Serving, meter: Meter) -> APIRouter:
    """Return the routes of chats and texts."""
    routes = APIRouter()
    answering = _Answering(serving, meter)

    @routes.post("/v1/chat/completions", tags=["chat"])
    async def chat_completions(body: ChatRequest, request: Request) -> Response:
        """Answer a conversation."""
        return await answering.answer(answering.chat(body), request)

    @routes.post("/v1/completions", tags=["chat"])
    async def completions(body: CompletionRequest, request: Request) -> Response:
        """Go on with a text."""
        return await answering.answer(answering.text(body), request)

    return routes


class _Answering:
    """Puts requests into the batch, and answers out of it into responses."""

    def __init__(self, serving: Serving, meter: Meter) -> None:
        self.serving, self.meter = serving, meter

    def chat(self, body: ChatRequest) -> Asked:
        """Return what a conversation asks for."""
        served = self.serving.named(body.model)
        options = self._options(body, served)
        openers = self._openers(served, body.conversation(), options, body.choices)
        counts = bool(body.stream_options and body.stream_options.include_usage)
        return Asked(served, openers, ChatWriter(body.model), bool(body.stream), counts)

    def text(self, body: CompletionRequest) -> Asked:
        """Return what a text, or several, ask for."""
        served = self.serving.named(body.model)
        options, texts = self._options(body, served), body.texts()
        if len(texts) * body.choices > self.serving.settings.max_choices:
            self._too_many(len(texts) * body.choices)
        openers = [
            opener
            for text in texts
            for opener in self._openers(served, text, options, body.choices)
        ]
        heads = [text for text in texts for _ in range(body.choices)] if body.echo else []
        writer = TextWriter(body.model, len(texts), heads)
        counts = bool(body.stream_options and body.stream_options.include_usage)
        return Asked(served, openers, writer, bool(body.stream), counts)

    def _options(self, body: ChatRequest | CompletionRequest, served: Served) -> GenerationOptions:
        options = body.options(self.serving.options, most=self.serving.settings.max_tokens)
        return replace(options, adapter=served.adapter)

    def _openers(
        self,
        served: Served,
        asked: Sequence[MessageLike] | str,
        options: GenerationOptions,
        count: int,
    ) -> list[Opener]:
        """Return one opener per answer; with a seed, each has its own."""
        if count > self.serving.settings.max_choices:
            self._too_many(count)
        seeds = [options.seed] * count
        if options.seed is not None:
            seeds = [(options.seed + _SEEDS + at) % (2 * _SEEDS) - _SEEDS for at in range(count)]
        return [partial(_open, served, asked, replace(options, seed=seed)) for seed in seeds]

    def _too_many(self, count: int) -> None:
        most = self.serving.settings.max_choices
        raise UsageError(f"one request may ask for {most} answers here, got {count}")

    async def answer(self, asked: Asked, request: Request) -> Response:
        """Return the response: whole, or a stream of events."""
        found = self._measured(asked)
        if not asked.stream:
            choices = await unless_left(request, _gathered(found, len(asked.openers)))
            return JsonResponse(asked.writer.whole(choices))
        first = await first_of(request, found)
        return EventStream(_events(asked, first, found), found)

    async def _measured(self, asked: Asked) -> AsyncGenerator[tuple[int, Chunk], None]:
        """Yield the pieces, and count what they are."""
        begun, first, ended = time.perf_counter(), True, 0
        found = pieces(asked.openers, self.serving.settings.timeout_s)
        try:
            async for at, chunk in found:
                if first:
                    self.meter.first(time.perf_counter() - begun)
                    first = False
                if chunk.finish_reason is not None:
                    ended += 1
                    self.meter.answered(asked.served.name, chunk)
                yield at, chunk
        except (GeneratorExit, asyncio.CancelledError):
            self.meter.cancelled(asked.served.name, len(asked.openers) - ended)
            raise
        finally:
            await found.aclose()


def _open(
    served: Served,
    asked: Sequence[MessageLike] | str,
    options: GenerationOptions,
    wake: Callable[[], None],
) -> Ticket:
    return served.live.ask(asked, options, wake=wake)


async def _gathered(found: AsyncGenerator[tuple[int, Chunk], None], count: int) -> list[Choice]:
    """Return whole answers."""
    choices = [Choice() for _ in range(count)]
    async for at, chunk in found:
        choices[at].take(chunk)
    return choices


async def _events(
    asked: Asked,
    first: tuple[int, Chunk],
    rest: AsyncGenerator[tuple[int, Chunk], None],
) -> AsyncGenerator[bytes, None]:
    """Yield answers as server-sent events; an error on the way is the last of them."""
    writer, choices = asked.writer, [Choice() for _ in asked.openers]
    for at in range(len(choices)):
        opening = writer.opening(at)
        if opening is not None:
            yield _event(opening)
    try:
        for piece in writer.pieces(*first):
            yield _event(piece)
        choices[first[0]].take(first[1])
        async for at, chunk in rest:
            choices[at].take(chunk)
            yield b"".join(map(_event, writer.pieces(at, chunk)))
    # Whatever it is: the status has been sent, so this is where a client is told.
    except Exception as error:  # noqa: BLE001
        yield _event(error_body(as_http(error)))
        return
    if asked.counts:
        yield _event(writer.usage(choices))
    yield b"data: [DONE]\n\n"


def _event(content: Json) -> bytes:
    return b"data: " + dumped(content) + b"\n\n"
