"""What every door of the server shares: errors in OpenAI's shape, API keys, limits of size.

    app = FastAPI(...)
    guard(app, Door(keys=("sk-...",), max_body_bytes=1 << 20))

Everything that is served over HTTP goes through :func:`guard`: this server's routes, those of
plugins, the queue's.
"""

from __future__ import annotations

import hmac
import json
import logging
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from fastapi import FastAPI
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException
from starlette.responses import Response

from glmkit import (
    BusyError,
    ClosedError,
    GlmkitError,
    MissingExtraError,
    OutOfMemoryError,
    ServerError,
    SourceError,
    TimeLimitError,
    UnknownNameError,
    UsageError,
)

from .limits import Door, is_named

if TYPE_CHECKING:
    from starlette.requests import Request
    from starlette.types import ASGIApp, Message, Receive, Scope, Send

log = logging.getLogger("glmkit.serve")

RETRY_AFTER_S = 2
"""What a client is told to wait where as many wait as may."""
OPEN = frozenset(("/health",))
"""Paths that need no key."""
_BUG = "the server failed on this request; its log says why"


class HttpError(GlmkitError):
    """An answer that is an error.

    :param status: of HTTP.
    :param code: OpenAI's word for it, where there is one.
    :param param: the field of the request that is at fault.
    """

    def __init__(
        self,
        status: int,
        message: str,
        *,
        code: str | None = None,
        param: str | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(message)
        self.status, self.code, self.param = status, code, param
        self.headers = dict(headers or {})


class UnsupportedError(HttpError):
    """A field that this server has no way to honour, and does not ignore.

    :param param: its name.
    :param instead: what to do.
    """

    def __init__(self, param: str, instead: str) -> None:
        super().__init__(
            400, f"{param} is not supported: {instead}", code="unsupported_parameter", param=param
        )


_STATUSES: Sequence[tuple[type[GlmkitError], int, str | None]] = (
    (BusyError, 429, "queue_full"),
    (TimeLimitError, 504, "timeout"),
    (ClosedError, 503, "shutting_down"),
    (UnknownNameError, 404, "model_not_found"),
    (UsageError, 400, None),
    (OutOfMemoryError, 503, "out_of_memory"),
    (MissingExtraError, 503, "not_installed"),
    (SourceError, 503, "not_available"),
    (ServerError, 502, "upstream"),
)


def as_http(error: BaseException) -> HttpError:
    """Return what a client is told of an error; a bug is logged here and told as one."""
    if isinstance(error, HttpError):
        return error
    for kind, status, code in _STATUSES:
        if isinstance(error, kind):
            headers = {"Retry-After": str(RETRY_AFTER_S)} if status in (429, 503) else {}
            return HttpError(status, str(error), code=code, headers=headers)
    if isinstance(error, GlmkitError):
        return HttpError(500, str(error))
    log.error("a request failed", exc_info=error)
    return HttpError(500, _BUG)


_TYPES = {401: "authentication_error", 403: "permission_error", 429: "rate_limit_error"}


def error_body(error: HttpError) -> dict[str, Any]:
    """Return an error as OpenAI writes it."""
    kind = _TYPES.get(error.status) or (
        "server_error" if error.status >= 500 else "invalid_request_error"
    )
    told = {"message": str(error), "type": kind, "param": error.param, "code": error.code}
    return {"error": told}


class JsonResponse(Response):
    """Plain values as JSON; text that is no Unicode does no harm."""

    media_type = "application/json"

    def render(self, content: object) -> bytes:
        """Return the bytes of the body."""
        return dumped(content)


def dumped(content: object) -> bytes:
    """Return plain values as bytes of JSON."""
    text = json.dumps(content, ensure_ascii=False, separators=(",", ":"))
    return text.encode("utf-8", "replace")


def error_response(error: BaseException) -> Response:
    """Return the response that tells a client of an error."""
    told = as_http(error)
    return JsonResponse(error_body(told), status_code=told.status, headers=told.headers)


def guard(app: FastAPI, door: Door) -> None:
    """Put limits and keys before all routes of ``app``, and errors into OpenAI's shape."""
    app.add_exception_handler(GlmkitError, _told)
    app.add_exception_handler(RequestValidationError, _invalid)
    app.add_exception_handler(HTTPException, _plain)
    app.add_middleware(_Guard, door=door)
    if door.origins:
        from starlette.middleware.cors import CORSMiddleware

        app.add_middleware(
            CORSMiddleware,
            allow_origins=list(door.origins),
            allow_methods=["GET", "POST", "DELETE"],
            allow_headers=["*"],
        )


async def _told(request: Request, error: Exception) -> Response:
    return error_response(error)


async def _plain(request: Request, error: Exception) -> Response:
    """Tell of what the framework refuses: no such path, another method."""
    status = error.status_code if isinstance(error, HTTPException) else 500
    detail = error.detail if isinstance(error, HTTPException) else _BUG
    headers = getattr(error, "headers", None) or {}
    code = "not_found" if status == 404 else None
    method, path = request.method, request.url.path
    said = f"{method} {path!a:.200}: {detail}" if status in (404, 405) else str(detail)
    return error_response(HttpError(status, said, code=code, headers=headers))


async def _invalid(request: Request, error: Exception) -> Response:
    """Tell what is wrong with a body, without repeating it."""
    found = error.errors() if isinstance(error, RequestValidationError) else ()
    first: Mapping[str, Any] = next(iter(found), {})
    where = ".".join(str(each) for each in tuple(first.get("loc", ()))[1:])
    said = str(first.get("msg", "the request cannot be read")).encode("ascii", "replace").decode()
    where = where.encode("ascii", "replace").decode()[:200]
    message = f"{where}: {said[:500]}" if where else said[:500]
    return error_response(HttpError(400, message, param=where or None))


class _Guard:
    """Looks at each request before anything else does."""

    def __init__(self, app: ASGIApp, door: Door) -> None:
        self.app, self.door = app, door
        self._keys = tuple(each.encode() for each in door.keys)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Let a request in, or answer with what it lacks."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        headers = {name: value for name, value in scope["headers"]}
        refused = self._refused(scope, headers)
        if refused is not None:
            await error_response(refused)(scope, receive, send)
            return
        body = _Body(receive, self.door.max_body_bytes)
        begun = _Begun(send)
        try:
            await self.app(scope, body.receive, begun.send)
        except GlmkitError as error:
            if begun.yes:
                raise
            await error_response(error)(scope, receive, send)
        # The last place before the server: whatever it is, a client sees no traceback.
        except Exception as error:  # noqa: BLE001
            if begun.yes:
                log.error("a request failed", exc_info=error)
                raise
            await error_response(error)(scope, receive, send)

    def _refused(self, scope: Scope, headers: Mapping[bytes, bytes]) -> HttpError | None:
        """Return why a request may not come in; None where it may."""
        door = self.door
        length = headers.get(b"content-length", b"0")
        if length.isdigit() and int(length) > door.max_body_bytes:
            return _too_large(door.max_body_bytes)
        if door.hosts is not None and not is_named(headers.get(b"host", b""), door.hosts):
            return HttpError(
                403,
                "this server answers to local names only, as it has no key; see hosts in its "
                "documentation",
            )
        sent = length != b"0" or b"transfer-encoding" in headers
        if sent and b"content-type" not in headers:
            # Some frameworks take it for JSON, which a page of another origin may send unasked.
            return HttpError(400, "say what the body is: Content-Type: application/json")
        if self._keys and scope["path"] not in OPEN and not self._knows(headers):
            return HttpError(
                401,
                "send one of the server's API keys as 'Authorization: Bearer KEY'",
                code="invalid_api_key",
                headers={"WWW-Authenticate": "Bearer"},
            )
        return None

    def _knows(self, headers: Mapping[bytes, bytes]) -> bool:
        """Compare in a time that tells nothing of the keys."""
        kind, _, given = headers.get(b"authorization", b"").strip().partition(b" ")
        given = given.strip() if kind.lower() == b"bearer" else b""
        found = [hmac.compare_digest(given, each) for each in self._keys]
        return any(found)


def _too_large(most: int) -> HttpError:
    return HttpError(413, f"the body is larger than {most} bytes", code="too_large")


class _Body:
    """Counts what is received of a body."""

    def __init__(self, receive: Receive, most: int) -> None:
        self._receive, self._most = receive, most
        self._size = 0

    async def receive(self) -> Message:
        """Pass a piece on.

        :raises HTTPException: if it is too much; the framework takes any other for bad JSON.
        """
        message = await self._receive()
        self._size += len(message.get("body", b""))
        if self._size > self._most:
            raise HTTPException(413, str(_too_large(self._most)))
        return message


class _Begun:
    """Notes whether a response has begun."""

    def __init__(self, send: Send) -> None:
        self._send = send
        self.yes = False

    async def send(self, message: Message) -> None:
        """Pass a piece on."""
        self.yes = True
        await self._send(message)
