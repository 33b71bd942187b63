"""From the threads that answer to the loop that serves: pieces as they come, and who leaves."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Coroutine, Sequence
from contextlib import suppress
from dataclasses import replace
from typing import TYPE_CHECKING, Any, TypeVar

import anyio
from anyio import to_thread
from starlette.responses import StreamingResponse

from glmkit import Chunk, TimeLimitError

from ..http import HttpError

if TYPE_CHECKING:
    from starlette.requests import Request
    from starlette.types import Receive, Scope, Send

    from glmkit.live import Ticket

Result = TypeVar("Result")
Opener = Callable[[Callable[[], None]], "Ticket"]
"""Puts a question into a batch; takes what the ticket calls when there is something to take."""


class LeftError(HttpError):
    """The client has gone; nobody reads this."""

    def __init__(self) -> None:
        super().__init__(499, "the client left")


async def pieces(
    openers: Sequence[Opener], timeout_s: float
) -> AsyncGenerator[tuple[int, Chunk], None]:
    """Yield the number of an answer and what is new of it, as it comes, until all have ended.

    Closing the generator frees the rows of those that have not.

    :raises GlmkitError: if one cannot be had.
    :raises TimeLimitError: if they take longer than they may.
    """
    loop, news = asyncio.get_running_loop(), asyncio.Event()
    until = loop.time() + timeout_s

    def wake() -> None:
        with suppress(RuntimeError):  # the loop is closed: nobody waits any more
            loop.call_soon_threadsafe(news.set)

    tickets: list[Ticket] = []
    try:
        for opener in openers:
            # In a thread, as it makes the prompt; noted there, so that it is closed whatever comes.
            await to_thread.run_sync(_noted, opener, wake, tickets)
        while not all(each.over for each in tickets):
            with anyio.move_on_after(until - loop.time()) as waiting:
                await news.wait()
            if waiting.cancelled_caught:
                raise TimeLimitError(f"no whole answer within {timeout_s:g} s")
            news.clear()
            for at, ticket in enumerate(tickets):
                for chunk in _joined(ticket.take()):
                    yield at, chunk
    finally:
        for ticket in tickets:
            ticket.close()


def _noted(opener: Opener, wake: Callable[[], None], tickets: list[Ticket]) -> None:
    tickets.append(opener(wake))


def _joined(chunks: list[Chunk]) -> list[Chunk]:
    """Return what has gathered in one piece, and the last chunk for itself."""
    text = "".join(each.text for each in chunks)
    ends = [replace(each, text="") for each in chunks if each.finish_reason is not None]
    odds = [token for each in chunks if each.finish_reason is None for token in each.logprobs]
    return [Chunk(text, logprobs=tuple(odds)), *ends] if text else ends


async def unless_left(request: Request, work: Coroutine[Any, Any, Result]) -> Result:
    """Return what ``work`` returns, and cancel it when the client goes.

    :raises LeftError: if it did.
    """
    task = asyncio.ensure_future(work)
    leaving = asyncio.ensure_future(_left(request))
    try:
        await asyncio.wait((task, leaving), return_when=asyncio.FIRST_COMPLETED)
        if not task.done():
            raise LeftError
        return task.result()
    finally:
        leaving.cancel()
        if not task.done():
            task.cancel()
            with suppress(asyncio.CancelledError):
                await task


async def _left(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass


class EventStream(StreamingResponse):
    """Server-sent events.

    :param events: what is sent.
    :param source: what they come from; closed however the response ends, also where it never began.
    """

    def __init__(
        self, events: AsyncGenerator[bytes, None], source: AsyncGenerator[Any, None]
    ) -> None:
        headers = {"Cache-Control": "no-cache", "X-Accel-Buffering": "no"}
        super().__init__(events, media_type="text/event-stream", headers=headers)
        self._events, self._source = events, source

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send the events until they end or the client goes."""
        try:
            await super().__call__(scope, receive, send)
        finally:
            await self._events.aclose()
            await self._source.aclose()


async def first_of(
    request: Request, found: AsyncGenerator[tuple[int, Chunk], None]
) -> tuple[int, Chunk]:
    """Return the first piece once it is there, so that an error before it has a status."""
    return await unless_left(request, _next(found))


async def _next(found: AsyncIterator[tuple[int, Chunk]]) -> tuple[int, Chunk]:
    return await anext(found)
