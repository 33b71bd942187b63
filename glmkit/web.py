"""HTTP: one server, its certificates, token and proxy, and errors in one line."""

from __future__ import annotations

import http.client
import json
import socket
import ssl
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from http.client import HTTPMessage
from typing import IO, Any
from urllib.parse import urlsplit

from . import __version__
from .errors import SourceError
from .store import MEGABYTE

_TRANSIENT = {408, 425, 429, 500, 502, 503, 504}
_LONGEST_WAIT_S = 60.0


class TransientError(Exception):
    """Something that may work a moment later.

    :param wait_s: seconds that the server asked us to wait.
    """

    def __init__(self, message: str, wait_s: float = 0.0) -> None:
        super().__init__(message)
        self.wait_s = wait_s


class RangeError(TransientError):
    """The file is shorter than what is already here of it."""


@dataclass(frozen=True)
class Http:
    """How to reach one server."""

    token: str | None = None
    """Sent as ``Authorization``, to the server itself and never to where it redirects."""
    scheme: str = "Bearer"
    cafile: str | None = None
    """Certificates to trust instead of the system's."""
    client_cert: str | None = None
    verify: bool = True
    proxy: str | None = None
    """None takes the proxy settings of the system."""
    timeout_s: float = 30.0
    tries: int = 5
    """How often to try without getting a single byte further."""
    pause_s: float = 0.5
    """Before the second try; doubles with each further one."""

    @cached_property
    def _opener(self) -> urllib.request.OpenerDirector:
        context = ssl.create_default_context(cafile=self.cafile)
        if self.client_cert:
            context.load_cert_chain(self.client_cert)
        if not self.verify:
            context.check_hostname = False
            context.verify_mode = ssl.CERT_NONE
        handlers: list[urllib.request.BaseHandler] = [
            urllib.request.HTTPSHandler(context=context),
            _Redirects(),
        ]
        if self.proxy:
            proxies = {"http": self.proxy, "https": self.proxy}
            handlers.append(urllib.request.ProxyHandler(proxies))
        return urllib.request.build_opener(*handlers)

    @contextmanager
    def open(self, url: str, *, offset: int = 0, accept: str = "*/*") -> Iterator[Any]:
        """Open ``url`` for reading, from byte ``offset`` on if the server can.

        :raises SourceError: if trying again would not help.
        :raises TransientError: if it may.
        """
        if urlsplit(url).scheme not in ("http", "https", "file"):
            raise SourceError(f"cannot download {url!r}; use an http, https or file address")
        headers = {"User-Agent": f"glmkit/{__version__}", "Accept": accept}
        if offset:
            headers["Range"] = f"bytes={offset}-"
        request = urllib.request.Request(url, headers=headers)
        if self.token:
            request.add_unredirected_header("Authorization", f"{self.scheme} {self.token}")
        with _network_errors(url):
            response = self._opener.open(request, timeout=self.timeout_s)
        with response:
            yield response

    def read(self, url: str, *, accept: str = "*/*") -> bytes:
        """Return the whole of a small document.

        :raises SourceError: if the server cannot be reached or refuses.
        """
        for attempt in range(1, self.tries + 1):
            try:
                with self.open(url, accept=accept) as response:
                    return b"".join(blocks(response, url))
            except TransientError as error:
                if attempt == self.tries:
                    raise SourceError(f"{error}; try again later") from error
                self.wait(attempt, error)
        raise AssertionError("unreachable")

    def json(self, url: str) -> Any:  # noqa: ANN401
        """Return a small JSON document.

        :raises SourceError: if it cannot be had or is not JSON.
        """
        body = self.read(url, accept="application/json")
        try:
            return json.loads(body)
        except ValueError as error:
            raise SourceError(f"{host_of(url)} did not answer JSON; check the endpoint") from error

    def wait(self, attempt: int, error: TransientError) -> None:
        """Sleep before the next try."""
        pause = max(error.wait_s, self.pause_s * 2 ** (attempt - 1))
        time.sleep(min(pause, _LONGEST_WAIT_S))


class _Redirects(urllib.request.HTTPRedirectHandler):
    """Follow redirects; keep the token on the same server only, and never leave encryption."""

    def redirect_request(
        self,
        req: urllib.request.Request,
        fp: IO[bytes],
        code: int,
        msg: str,
        headers: HTTPMessage,
        newurl: str,
    ) -> urllib.request.Request | None:
        old, new = urlsplit(req.full_url), urlsplit(newurl)
        if old.scheme == "https" and new.scheme != "https":
            raise SourceError(f"{old.netloc} redirects to {new.scheme}://, which is not encrypted")
        code = 307 if code == 308 else code
        request = super().redirect_request(req, fp, code, msg, headers, newurl)
        token = req.unredirected_hdrs.get("Authorization")
        if request is not None and token and (old.scheme, old.netloc) == (new.scheme, new.netloc):
            request.add_unredirected_header("Authorization", token)
        return request

    # Python 3.10 knows no 308.
    http_error_308 = urllib.request.HTTPRedirectHandler.http_error_302


@contextmanager
def _network_errors(url: str) -> Iterator[None]:
    """Say in one line what went wrong on the way to ``url``."""
    host = host_of(url)
    try:
        yield
    except urllib.error.HTTPError as error:
        with error:
            _refused(error, url)
    except urllib.error.URLError as error:
        _unreachable(error.reason, host)
    except (OSError, http.client.HTTPException) as error:
        _unreachable(error, host)


def blocks(response: Any, url: str) -> Iterator[bytes]:  # noqa: ANN401
    """Yield what a server sends, as it comes: nothing is lost where the connection breaks."""
    while True:
        with _network_errors(url):
            block: bytes = response.read1(MEGABYTE)
        if not block:
            return
        yield block


def _refused(error: urllib.error.HTTPError, url: str) -> None:
    host, code = host_of(url), error.code
    if code in _TRANSIENT:
        raise TransientError(f"{host} answered {code} {error.reason}", _retry_after(error))
    if code == 416:
        raise RangeError(f"{host} has fewer bytes than were already downloaded")
    path = urlsplit(url).path
    if code in (401, 403):
        raise SourceError(
            f"{host} refuses access to {path} ({code}); check the name, accept the model's terms "
            "on its page and set HF_TOKEN to your access token"
        ) from error
    if code in (404, 410):
        raise SourceError(f"{host} has no {path} ({code}); check the name") from error
    raise SourceError(f"{host} answered {code} {error.reason} for {path}") from error


def _unreachable(reason: object, host: str) -> None:
    if isinstance(reason, ssl.SSLCertVerificationError):
        raise SourceError(
            f"the certificate of {host} is not trusted ({reason.verify_message}); "
            "set SSL_CERT_FILE to your authority's certificates"
        ) from reason
    if isinstance(reason, socket.gaierror):
        raise SourceError(
            f"cannot find the server {host}; check the network, choose a mirror "
            "(HF_ENDPOINT, pip's index-url) or pull --from a local folder"
        ) from reason
    if isinstance(reason, FileNotFoundError):
        raise SourceError(f"no such file: {reason.filename or host}") from reason
    said = str(reason) or type(reason).__name__
    raise TransientError(f"the connection to {host or 'the file'} failed ({said})")


def _retry_after(error: urllib.error.HTTPError) -> float:
    value = error.headers.get("Retry-After") or ""
    return float(value) if value.isdigit() else 0.0


def host_of(url: str) -> str:
    """Return the server's name without credentials."""
    return urlsplit(url).netloc.rpartition("@")[2]
