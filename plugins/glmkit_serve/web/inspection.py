"""What browsers may send to Gradio. Light: an ASGI application around another.

Gradio fetches what an event calls a file, public addresses too, before anybody here is asked. So
events are looked at first: files in them are such as were uploaded to this page, or they go no
further. What is passed on is written anew, so that nothing can be read in two ways.
"""

from __future__ import annotations

import json
import logging
from collections import OrderedDict
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

from starlette.responses import PlainTextResponse

if TYPE_CHECKING:
    from starlette.types import ASGIApp, Message, Receive, Scope, Send

log = logging.getLogger(__name__)

API = "/gradio_api/"
_UPLOAD = "upload"
_EVENTS = ("queue/join", "run/", "api/", "call/", "cancel", "reset")
"""Where the page sends events, beside uploads; what else Gradio takes is for its developers."""
_LONGEST = 4 << 20
"""Bytes of an event: texts, and the names of files."""
_DEEPEST = 100
_REMEMBERED = 10_000
"""Uploads; the oldest are forgotten, as events follow them within seconds."""


class RefusedError(ValueError):
    """An event that goes no further."""


class Inspection:
    """Lets events through whose files were uploaded here."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app
        self._uploads: OrderedDict[str, None] = OrderedDict()
        """Paths of what was uploaded. They hold a hash: who did not send it, cannot name it."""

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass a request on, or say why not."""
        if scope["type"] != "http" or scope["method"] in ("GET", "HEAD", "OPTIONS"):
            await self.app(scope, receive, send)
            return
        target = scope["path"].partition(API)[2]
        if target.strip("/") == _UPLOAD:
            await self.app(scope, receive, _Told(send, self._remember).send)
        elif target.startswith(_EVENTS):
            await self._event(scope, receive, send)
        else:
            await PlainTextResponse("this page takes nothing there", 403)(scope, receive, send)

    async def _event(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            body = self._checked(await _body(receive))
        except RefusedError as error:
            log.warning("an event was refused: %s", error)
            await PlainTextResponse(str(error), 400)(scope, receive, send)
            return
        kept = [pair for pair in scope["headers"] if pair[0] not in _OF_BODY]
        kept.append((b"content-length", str(len(body)).encode()))
        parts: list[Message] = [{"type": "http.request", "body": body, "more_body": False}]

        async def again() -> Message:
            return parts.pop() if parts else await receive()

        await self.app({**scope, "headers": kept}, again, send)

    def _checked(self, body: bytes) -> bytes:
        """Return an event, written anew.

        :raises RefusedError: if it is none, or names a file that was not uploaded.
        """
        try:
            event = json.loads(body or b"null")
        except (ValueError, RecursionError) as error:
            raise RefusedError("an event is JSON") from error
        for path in files_in(event):
            if path not in self._uploads:
                raise RefusedError("files come to this page by being uploaded")
        return json.dumps(event).encode()

    def _remember(self, answer: bytes) -> None:
        """Note what Gradio says it has taken in."""
        paths = json.loads(answer)
        self._uploads.update(dict.fromkeys(paths))
        while len(self._uploads) > _REMEMBERED:
            self._uploads.popitem(last=False)


_OF_BODY = (b"content-length", b"transfer-encoding")


def files_in(event: object) -> Iterator[object]:
    """Yield the paths of whatever may be a file in an event.

    :raises RefusedError: if it is nested deeper than events are.
    """
    level = [event]
    for _ in range(_DEEPEST):
        for each in level:
            if isinstance(each, dict) and "path" in each:
                path = each["path"]
                yield path if isinstance(path, str) else None
        level = [inner for each in level for inner in _inside(each)]
        if not level:
            return
    raise RefusedError("an event is not nested so deep")


def _inside(value: object) -> list[Any]:
    if isinstance(value, dict):
        return list(value.values())
    return value if isinstance(value, list) else []


async def _body(receive: Receive) -> bytes:
    """Return the body of a request.

    :raises RefusedError: if it is longer than events are, or does not come.
    """
    parts, length, more = [], 0, True
    while more:
        message = await receive()
        if message["type"] != "http.request":
            raise RefusedError("the visitor left")
        parts.append(message.get("body", b""))
        length += len(parts[-1])
        if length > _LONGEST:
            raise RefusedError(f"an event has {_LONGEST} bytes at most")
        more = message.get("more_body", False)
    return b"".join(parts)


class _Told:
    """Passes an answer on, and tells its body where all went well."""

    def __init__(self, send: Send, tell: Callable[[bytes], None]) -> None:
        self._send, self._tell = send, tell
        self._good, self._parts = False, bytearray()

    async def send(self, message: Message) -> None:
        """Pass a piece on."""
        if message["type"] == "http.response.start":
            self._good = message["status"] == 200
        elif message["type"] == "http.response.body" and self._good:
            self._parts += message.get("body", b"")
            if not message.get("more_body", False):
                self._tell(bytes(self._parts))
        await self._send(message)
