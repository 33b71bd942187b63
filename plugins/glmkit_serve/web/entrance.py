"""Who may come in, and what browsers are told. Light: an ASGI application around another."""

from __future__ import annotations

import base64
import binascii
import hmac
from collections.abc import Mapping
from typing import TYPE_CHECKING

from starlette.responses import PlainTextResponse, Response

from ..limits import LOCAL_NAMES

if TYPE_CHECKING:
    from starlette.types import ASGIApp, Message, Receive, Scope, Send

POLICY = "; ".join(
    (
        "default-src 'self'",
        # Gradio's page starts from scripts within it and compiles templates.
        "script-src 'self' 'unsafe-inline' 'unsafe-eval' blob:",
        "style-src 'self' 'unsafe-inline'",
        "img-src 'self' data: blob:",
        "media-src 'self' data: blob:",
        "font-src 'self' data:",
        "connect-src 'self' data: blob:",
        "worker-src 'self' blob:",
        "object-src 'none'",
        "base-uri 'self'",
        "form-action 'self'",
        "frame-ancestors 'self'",
    )
)
"""What browsers may fetch: nothing from elsewhere, whatever an answer or a document says."""
_HEADERS = {
    "content-security-policy": POLICY,
    "referrer-policy": "no-referrer",
    "x-content-type-options": "nosniff",
}


class Entrance:
    """Lets in who may come in, and tells browsers what they may fetch."""

    def __init__(self, app: ASGIApp, keys: tuple[str, ...], hosts: tuple[str, ...] | None) -> None:
        self.app = app
        self._keys = tuple(each.encode() for each in keys)
        self._hosts = hosts

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer a request, or say what it lacks."""
        if scope["type"] != "http":
            if scope["type"] == "lifespan":
                await self.app(scope, receive, send)
            return  # no websockets here

        async def told(message: Message) -> None:
            if message["type"] == "http.response.start":
                more = [(name.encode(), value.encode()) for name, value in _HEADERS.items()]
                message["headers"] = [*message.get("headers", ()), *more]
            await send(message)

        headers = dict(scope["headers"])
        await (self._refusal(headers) or self.app)(scope, receive, told)

    def _refusal(self, headers: Mapping[bytes, bytes]) -> Response | None:
        """Return the answer to who may not come in."""
        if self._hosts is not None and not _named(headers.get(b"host", b""), self._hosts):
            # Otherwise a page elsewhere could reach this one under a name of its own.
            return PlainTextResponse("this page answers to local names only", 403)
        if self._keys and not self._knows(headers.get(b"authorization", b"")):
            asking = {"www-authenticate": 'Basic realm="glmkit", charset="UTF-8"'}
            return PlainTextResponse("the key is asked for as password", 401, asking)
        return None

    def _knows(self, given: bytes) -> bool:
        """Compare in a time that tells nothing of the keys; any user name will do."""
        kind, _, value = given.partition(b" ")
        if kind.lower() != b"basic":
            return False
        try:
            password = base64.b64decode(value, validate=True).partition(b":")[2]
        except (binascii.Error, ValueError):
            return False
        found = [hmac.compare_digest(password, each) for each in self._keys]
        return any(found)


def _named(host: bytes, allowed: tuple[str, ...]) -> bool:
    name = host.decode("latin-1").lower()
    bare = name if name.endswith("]") else name.rpartition(":")[0] or name
    return bare in allowed


def local_names(*more: str) -> tuple[str, ...]:
    """Return what a site of this machine alone may be called."""
    return (*LOCAL_NAMES, *(each.lower() for each in more))
