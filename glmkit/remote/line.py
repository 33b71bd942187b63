"""The connection to a server: one request at a time, its failures told apart."""

from __future__ import annotations

import json
import socket
import ssl
import sys
import threading
import weakref
from collections.abc import Generator, Iterator, Mapping
from contextlib import contextmanager, suppress
from typing import Any

from .. import __version__
from ..errors import ServerError
from ..servers import Server
from .faults import (
    MissingEndpointError,
    Refusal,
    ShutError,
    TransientError,
    message_in,
    parsed,
    retry_after,
    status_in,
)
from .sse import Event, events
from .wire import Json

if sys.version_info >= (3, 11):
    import httpx2 as httpx
else:
    import httpx

CONNECT_S = 10.0
LARGEST = 64 << 20
"""Bytes of one answer that comes as a whole."""
_LARGEST_ERROR = 1 << 16


class Line:
    """Connections to one server; threads may share it.

    :param connections: how many are kept open for the next request.
    """

    def __init__(self, server: Server, *, connections: int = 1) -> None:
        self.server = server
        self.heard = False
        """Whether the server has ever answered anything."""
        self._addresses: dict[str, tuple[str, ...]] = {}
        self._sockets: weakref.WeakSet[socket.socket] = weakref.WeakSet()
        self._cut = False
        self._lock = threading.Lock()
        headers = {"User-Agent": f"glmkit/{__version__}"}
        if server.api_key is not None:
            headers["Authorization"] = f"Bearer {server.api_key}"
        self._client = httpx.Client(
            headers=headers,
            auth=server.login,
            timeout=httpx.Timeout(server.timeout_s, connect=min(CONNECT_S, server.timeout_s)),
            trust_env=not server.plain,  # no proxy leads back to this machine
            # Loading certificates takes a fifth of a second; without any, none is trusted.
            verify=ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT) if server.plain else True,
            limits=httpx.Limits(max_connections=None, max_keepalive_connections=connections),
        )

    def close(self) -> None:
        """Close the connections; what still runs is cut off, and the server sees that."""
        with self._lock:
            self._cut = True
            open_now = list(self._sockets)
        for each in open_now:
            with suppress(OSError):  # closed already
                each.shutdown(socket.SHUT_RDWR)
        self._client.close()

    def models(self) -> list[str]:
        """Return the names of the models that the server offers.

        :raises ServerError: if it cannot be reached or does not say.
        :raises TransientError: if it may be had a moment later.
        """
        with self._sent("/models", None) as response:
            found = _json(_whole(response, LARGEST), self.server)
        listed = found.get("data", found.get("models"))
        named = [each for each in listed if isinstance(each, dict)] if listed else []
        return [name for each in named if isinstance(name := each.get("id", each.get("name")), str)]

    def ask(self, body: Json) -> Json:
        """Return a whole answer.

        :raises ServerError: if the server refuses; tells by its class what that means.
        :raises TransientError: if it may be had a moment later.
        """
        with self._sent("/chat/completions", body) as response:
            answer = _json(_whole(response, LARGEST), self.server)
        if not answer.get("choices"):
            self._refuse_error(answer, body)
            raise ServerError(f"{self.server.shown} sent an answer without choices; {_CHECK}")
        return answer

    def listen(self, body: Json) -> Generator[Json, None, None]:
        """Yield the pieces of an answer as they come.

        Raises what :meth:`ask` does, at any piece.

        :raises TransientError: also if the connection breaks before the answer's end.
        """
        with self._sent("/chat/completions", body) as response:
            if "text/event-stream" not in response.headers.get("content-type", "text/event-stream"):
                answer = _json(_whole(response, LARGEST), self.server)
                self._refuse_error(answer, body)
                yield answer
                return
            for event in events(response.iter_bytes()):
                if event.data.strip() == "[DONE]":
                    return
                if event.data.strip():
                    piece = self._piece(event)
                    self._refuse_error(piece, body)
                    yield piece
            raise TransientError(f"{self.server.shown} ended the stream before [DONE]")

    def _piece(self, event: Event) -> Json:
        value = parsed(event.data)
        if event.name == "error":
            return {"error": value or event.data}
        if not isinstance(value, dict):
            where, begins = self.server.shown, event.data[:40]
            raise ServerError(f"{where} streamed no JSON object, but {begins!r}; {_CHECK}")
        return value

    def _refuse_error(self, piece: Json, body: Json) -> None:
        """Raise the error that came where an answer should."""
        error = piece.get("error")
        if piece.get("object") == "error":
            error = piece
        if not error:
            return
        inner = error.get("error", error) if isinstance(error, dict) else error
        text = message_in(json.dumps(error), secret=self.server.api_key)
        raise Refusal(status_in(inner, 500), text, self.server.shown).error(body)

    @contextmanager
    def _sent(self, endpoint: str, body: Json | None) -> Iterator[httpx.Response]:
        """Send a request; yield the answer if it is one."""
        with self._plain_errors():
            response = self._found(endpoint, body)
            try:
                yield response
            finally:
                response.close()

    def _found(self, endpoint: str, body: Json | None) -> httpx.Response:
        """Send a request to where the endpoint is, which is found out once."""
        *others, last = self._addresses.get(endpoint) or self.server.addresses(endpoint)
        for address in others:
            with suppress(MissingEndpointError):
                response = self._opened(address, body)
                self._addresses[endpoint] = (address,)
                return response
        response = self._opened(last, body)
        self._addresses[endpoint] = (last,)
        return response

    def _opened(self, address: str, body: Json | None) -> httpx.Response:
        request = self._client.build_request(
            "GET" if body is None else "POST",
            address,
            json=body,
            extensions={"trace": self._trace},
        )
        response = self._client.send(request, stream=True)
        self.heard = True
        try:
            self._check(response, body or {})
        except BaseException:
            response.close()
            raise
        return response

    def _trace(self, event: str, about: Mapping[str, Any]) -> None:
        """Remember the sockets, so that :meth:`close` can cut off what waits for an answer."""
        if not event.endswith(("connect_tcp.complete", "start_tls.complete")):
            return
        found = about["return_value"].get_extra_info("socket")
        if isinstance(found, socket.socket):
            with self._lock:
                self._sockets.add(found)
                cut = self._cut
            if cut:
                found.shutdown(socket.SHUT_RDWR)

    def _check(self, response: httpx.Response, body: Json) -> None:
        """Raise what an answer other than 200 means."""
        status = response.status_code
        if status == 200:
            return
        if 300 <= status < 400:
            there = response.headers.get("location", "elsewhere").partition("?")[0]
            raise ShutError(f"{self.server.shown} has moved to {there}; give that as base URL")
        said = _whole(response, _LARGEST_ERROR).decode("utf-8", "replace")
        text = message_in(said, secret=self.server.api_key)
        wait_s = retry_after(response.headers.get("retry-after"))
        raise Refusal(status, text, self.server.shown, wait_s).error(body)

    @contextmanager
    def _plain_errors(self) -> Iterator[None]:
        """Say in one line what went wrong on the way."""
        where = self.server.shown
        try:
            yield
        except (httpx.ConnectError, httpx.ConnectTimeout, httpx.ProxyError) as error:
            _refuse_tls(error, where)
            raise TransientError(f"cannot reach {where} ({_said(error)})", gone=True) from error
        except httpx.TimeoutException as error:
            seconds = f"{self.server.timeout_s:g} s"
            raise TransientError(f"{where} said nothing for {seconds}") from error
        except (httpx.TransportError, httpx.DecodingError) as error:
            raise TransientError(f"the connection to {where} broke ({_said(error)})") from error


_CHECK = "check that the base URL is a model server's"


def _refuse_tls(error: Exception, where: str) -> None:
    text = str(error)
    if "CERTIFICATE_VERIFY_FAILED" in text:
        raise ShutError(
            f"the certificate of {where} is not trusted ({text}); set SSL_CERT_FILE to your "
            "authority's certificates"
        ) from error
    if "SSL" in text and "WRONG_VERSION_NUMBER" in text:
        raise ShutError(f"{where} does not speak https; write http:// in the base URL") from error


def _said(error: Exception) -> str:
    return str(error) or type(error).__name__


def _whole(response: httpx.Response, most: int) -> bytes:
    """Return the body of a response, the beginning of it where it is an error and too long."""
    blocks: list[bytes] = []
    size = 0
    for block in response.iter_bytes():
        blocks.append(block)
        size += len(block)
        if size > most:
            if response.status_code == 200:
                raise ServerError(f"an answer of over {most >> 20} MB is none; {_CHECK}")
            break
    return b"".join(blocks)


def _json(body: bytes, server: Server) -> Json:
    value = parsed(body)
    if not isinstance(value, dict):
        begins = body[:40].decode("utf-8", "replace")
        raise ServerError(f"{server.shown} answered no JSON object, but {begins!r}; {_CHECK}")
    return value
