"""Who may come in, and what browsers are told. Light: an ASGI application around another."""

from __future__ import annotations

import base64
import binascii
import hmac
from collections.abc import Mapping
from typing import TYPE_CHECKING

from starlette.responses import PlainTextResponse, Response

from ..limits import is_named

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
    """Lets in who may come in, and tells browsers what they may fetch.

    :param keys: one of them is asked for as the password; none: nobody is asked.
    :param hosts: names that the site may be called; None: any.
    :param proxies: names under which browsers know the site where a proxy hides them from it.
    """

    def __init__(
        self,
        app: ASGIApp,
        keys: tuple[str, ...],
        hosts: tuple[str, ...] | None,
        proxies: tuple[str, ...] = (),
    ) -> None:
        self.app = app
        self._keys = tuple(each.encode() for each in keys)
        self._hosts, self._proxies = hosts, tuple(each.lower() for each in proxies)

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

        await (self._refusal(scope) or self.app)(scope, receive, told)

    def _refusal(self, scope: Scope) -> Response | None:
        """Return the answer to who may not come in."""
        headers = dict(scope["headers"])
        if self._hosts is not None and not is_named(headers.get(b"host", b""), self._hosts):
            # Otherwise a page elsewhere could reach this one under a name of its own.
            said = "this page answers to local names only; --allow-host adds another"
            return PlainTextResponse(said, 403)
        if self._foreign(scope["method"], headers):
            return PlainTextResponse("this page takes nothing from pages elsewhere", 403)
        if self._keys and not self._knows(headers.get(b"authorization", b"")):
            asking = {"www-authenticate": 'Basic realm="glmkit", charset="UTF-8"'}
            return PlainTextResponse("the key is asked for as password", 401, asking)
        return None

    def _foreign(self, method: str, headers: Mapping[bytes, bytes]) -> bool:
        """Tell whether a page elsewhere sent this: its visitor may know nothing of it.

        Links from there are followed; programs that are no browsers say nothing of where they are.
        """
        site = headers.get(b"sec-fetch-site")
        if site in (b"same-origin", b"none"):
            return False
        reads = method in ("GET", "HEAD")
        if site is not None:
            return not (reads and headers.get(b"sec-fetch-mode") == b"navigate")
        origin = headers.get(b"origin")
        if reads or origin is None:  # a browser lets nobody elsewhere read the answer
            return False
        sent_from = origin.partition(b"://")[2]
        return sent_from != headers.get(b"host", b"") and not is_named(sent_from, self._proxies)

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
