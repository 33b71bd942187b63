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
        # A few bytes of a compressed answer may become gigabytes.
        headers = {"User-Agent": f"glmkit/{__version__}", "Accept-Encoding": "identity"}
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
        listed = found.get("data", found.get("models")) or []
        if not isinstance(listed, list):
            raise ServerError(f"{self.server.shown} sent no list of models; {_CHECK}")
        named = (each.get("id", each.get("name")) for each in listed if isinstance(each, dict))
        return [each for each in named if isinstance(each, str) and each.isprintable()]

    def ask(self, body: Json) -> Json:
        """Return a whole answer.

        :raises ServerError: if the server refuses; tells by its class what that means.
        :raises TransientError: if it may be had a moment later.
        """
        with self._sent("/chat/completions", body) as response:
            return self._answer(response, body)

    def listen(self, body: Json) -> Generator[Json, None, None]:
        """Yield the pieces of an answer as they come.

        Raises what :meth:`ask` does, at any piece.

        :raises TransientError: also if the connection breaks before the answer's end.
        """
        with self._sent("/chat/completions", body) as response:
            if "text/event-stream" not in response.headers.get("content-type", "text/event-stream"):
                yield self._answer(response, body)
            else:
                yield from self._pieces(response, body)

    def _answer(self, response: httpx.Response, body: Json) -> Json:
        answer = _json(_whole(response, LARGEST), self.server)
        if not answer.get("choices"):
            self._refuse_error(answer, body)
            raise self._unanswered(answer)
        return answer

    def _pieces(self, response: httpx.Response, body: Json) -> Iterator[Json]:
        """Yield what is streamed, until an end at which anything was an answer."""
        piece: Json = {}
        answered = False
        for event in events(response.iter_bytes()):
            data = event.data.strip()
            if data == "[DONE]":
                if not answered:
                    raise self._unanswered(piece)
                return
            if data:
                piece = self._piece(event)
                self._refuse_error(piece, body)
                answered = answered or bool(piece.get("choices"))
                yield piece
        if piece and not answered and "choices" not in piece:
            raise self._unanswered(piece)
        raise TransientError(f"{self.server.shown} ended the stream before [DONE]")

    def _unanswered(self, said: Json) -> ServerError:
        text = message_in(json.dumps(said), hidden=self.server.hidden) if said else "nothing"
        return ServerError(
            f"{self.server.shown} sent an answer without choices, but {text}; {_CHECK}"
        )

    def _piece(self, event: Event) -> Json:
        value = parsed(event.data)
        if event.name == "error":
            return {"error": value or event.data}
        if not isinstance(value, dict):
            begins = _beginning(event.data, self.server)
            where = self.server.shown
            raise ServerError(f"{where} streamed no JSON object, but {begins}; {_CHECK}")
        return value

    def _refuse_error(self, piece: Json, body: Json) -> None:
        """Raise the error that came where an answer should."""
        error = piece.get("error")
        if piece.get("object") == "error":
            error = piece
        if not error:
            return
        inner = error.get("error", error) if isinstance(error, dict) else error
        text = message_in(json.dumps(error), hidden=self.server.hidden)
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
        status, where = response.status_code, self.server.shown
        packing = response.headers.get("content-encoding", "").strip().lower()
        packed = packing not in ("", "identity")
        if status == 200 and not packed:
            return
        if status == 200:
            raise ServerError(f"{where} compresses its answers unasked; switch that off there")
        if 300 <= status < 400:
            there = response.headers.get("location", "elsewhere").partition("?")[0]
            there = message_in(there, hidden=self.server.hidden)
            raise ShutError(f"{where} has moved to {there}; give that as base URL")
        said = b"" if packed else _whole(response, _LARGEST_ERROR)
        text = message_in(said.decode("utf-8", "replace"), hidden=self.server.hidden)
        wait_s = retry_after(response.headers.get("retry-after"))
        raise Refusal(status, text, where, wait_s).error(body)

    @contextmanager
    def _plain_errors(self) -> Iterator[None]:
        """Say in one line what went wrong on the way."""
        where, hidden = self.server.shown, self.server.hidden
        try:
            yield
        except httpx.InvalidURL as error:
            raise ShutError(f"{where} is no address ({error}); mend the base URL") from error
        except (httpx.ConnectError, httpx.ConnectTimeout, httpx.ProxyError) as error:
            _refuse_tls(error, where)
            raise TransientError(
                f"cannot reach {where} ({hidden(_said(error))})", gone=True
            ) from error
        except httpx.TimeoutException as error:
            seconds = f"{self.server.timeout_s:g} s"
            raise TransientError(f"{where} said nothing for {seconds}") from error
        except (httpx.TransportError, httpx.DecodingError) as error:
            said = hidden(_said(error))
            raise TransientError(f"the connection to {where} broke ({said})") from error


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
        begins = _beginning(body[:_LARGEST_ERROR].decode("utf-8", "replace"), server)
        raise ServerError(f"{server.shown} answered no JSON object, but {begins}; {_CHECK}")
    return value


def _beginning(text: str, server: Server) -> str:
    """Quote how something begins that is no answer, without our key and password."""
    return repr(server.hidden(text[:_LARGEST_ERROR])[:40])
