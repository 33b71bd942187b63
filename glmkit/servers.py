"""Where a model server is, and how to treat it."""

from __future__ import annotations

import base64
import ipaddress
import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any
from urllib.parse import SplitResult, parse_qsl, unquote, urlsplit, urlunsplit

from .errors import UsageError

_EMPTY: Mapping[str, Any] = MappingProxyType({})
_VERSION = re.compile(r"v\d+\w*")
"""A part of a path that names the version of an API: ``v1``, ``v1beta``."""
_ENDPOINTS = ("/chat/completions", "/completions", "/models")
_SECRET = 8
"""Characters from which on a value in an address's query may be a key."""
_EXAMPLES = "http://localhost:8000/v1 (vLLM), http://localhost:11434/v1 (Ollama)"


@dataclass(frozen=True)
class Server:
    """A server that speaks OpenAI's protocol: vLLM, SGLang, llama-server, Ollama, a hosted one.

    :raises UsageError: if a field is out of range; never says the key or a password.
    """

    base_url: str | None = field(default=None, repr=False)
    """Its address, with or without ``/v1``; a user and a password in it are sent as such."""
    api_key: str | None = field(default=None, repr=False)
    """Sent as ``Authorization: Bearer``; None sends none."""
    timeout_s: float = 600.0
    """Longest silence: of a whole answer of a batch, and between two pieces of a streamed one."""
    patience_s: float = 300.0
    """How long one question is asked again while the server is too busy or fails."""
    requests_per_minute: float | None = None
    """Most requests that begin in a minute; None: as many as it takes."""
    tokens_per_minute: float | None = None
    """Most tokens a minute, of prompts and answers, as near as that can be foreseen."""
    extra: Mapping[str, Any] = field(default_factory=lambda: _EMPTY, repr=False)
    """Put into every request as it is, for what only some servers know; a token among it."""

    def __post_init__(self) -> None:
        if self.base_url is not None:
            _parsed(self.base_url)
        if self.api_key is not None and not _sendable(self.api_key):
            raise UsageError(
                "the API key has characters that no key has (blanks, line breaks, letters beyond "
                "ASCII); copy it again"
            )
        for name in ("timeout_s", "patience_s", "requests_per_minute", "tokens_per_minute"):
            _check_positive(name, getattr(self, name), optional=name.endswith("minute"))
        _check_extra(self.extra)

    @classmethod
    def of(cls, value: Server | str) -> Server:
        """Return ``value`` as a server; a text is its address."""
        return value if isinstance(value, Server) else cls(base_url=value)

    @property
    def _parts(self) -> SplitResult:
        if self.base_url is None:
            raise UsageError(
                "the openai engine needs the address of a server: give --base-url, set "
                f"OPENAI_BASE_URL, or base_url under [openai] in glmkit.toml; for example "
                f"{_EXAMPLES}"
            )
        return _parsed(self.base_url)

    @property
    def local(self) -> bool:
        """Whether it runs on this machine, as far as its name says."""
        host = self._parts.hostname or ""
        try:
            return ipaddress.ip_address(host).is_loopback
        except ValueError:
            return host == "localhost" or host.endswith(".localhost")

    @property
    def plain(self) -> bool:
        """Whether nothing lies between: no network, so no proxy, and no encryption."""
        return self.local and self._parts.scheme == "http"

    @property
    def shown(self) -> str:
        """The address for a person: without user, password and query."""
        parts = self._parts
        return urlunsplit((parts.scheme, _host(parts), parts.path.rstrip("/"), "", ""))

    @property
    def login(self) -> tuple[str, str] | None:
        """User and password of the address, if it has any.

        :raises UsageError: if there is a key too, as one header holds either.
        """
        parts = self._parts
        if parts.username is None:
            return None
        if self.api_key is not None:
            raise UsageError(
                f"there is an API key and a login in the address of {self.shown}, and one header "
                "holds either; unset OPENAI_API_KEY, or take user and password out of the base URL"
            )
        return unquote(parts.username), unquote(parts.password or "")

    def hidden(self, text: str) -> str:
        """Return a text, which a server may have said, with *** for the key and the password."""
        for each in sorted(self._secrets(), key=len, reverse=True):
            text = text.replace(each, "***")
        return text

    def _secrets(self) -> Iterator[str]:
        if self.api_key:
            yield self.api_key
        if self.base_url is None:
            return
        parts = self._parts
        user, password = parts.username or "", parts.password
        if password:
            plain = unquote(password)
            yield from (password, plain)
            yield base64.b64encode(f"{unquote(user)}:{plain}".encode()).decode()
        yield from (each for _, each in parse_qsl(parts.query) if len(each) >= _SECRET)

    def addresses(self, endpoint: str) -> tuple[str, ...]:
        """Return where an endpoint may be (``"/chat/completions"``), the likeliest first."""
        parts = self._parts
        path = parts.path.rstrip("/")
        for each in _ENDPOINTS:
            path = path.removesuffix(each)
        known = any(_VERSION.fullmatch(each) for each in path.split("/"))
        paths = (path,) if known else (f"{path}/v1", path)
        host = _host(parts)
        return tuple(
            urlunsplit((parts.scheme, host, each + endpoint, parts.query, "")) for each in paths
        )


def _parsed(url: str) -> SplitResult:
    url = url.strip()
    try:
        parts = urlsplit(url)
        port, host = parts.port, parts.hostname
    except ValueError:  # quotes what it takes for the port, which may be a password
        raise UsageError(_UNREADABLE) from None
    if parts.scheme not in ("http", "https") or not host or port == 0:
        shown = re.split("[?#]", url.rpartition("@")[2])[0]
        raise UsageError(
            f"the base URL must begin with http:// or https:// and name a server, got {shown!r}; "
            f"write for example {_EXAMPLES}"
        )
    if "@" in parts.path + parts.query + parts.fragment or " " in url or not url.isprintable():
        raise UsageError(_UNREADABLE)
    if not _is_host(host):
        raise UsageError(
            f"the base URL names {host!r}, which no server can be called; write for example "
            f"{_EXAMPLES}"
        )
    return parts


_UNREADABLE = (
    "the base URL cannot be read; in a user or a password, and for an @ elsewhere, write %2F for "
    f"/, %3F for ?, %23 for #, %40 for @, %3A for :, %20 for a blank; for example {_EXAMPLES}"
)


def _is_host(name: str) -> bool:
    """Tell whether a name may be looked up: labels of 1 to 63 characters, or an IP address."""
    try:
        if ":" in name:
            return bool(ipaddress.IPv6Address(name))
        return re.fullmatch(r"[\w.-]+", name.encode("idna").decode(), re.ASCII) is not None
    except ValueError:
        return False


def _host(parts: SplitResult) -> str:
    return parts.netloc.rpartition("@")[2]


def _sendable(key: str) -> bool:
    return bool(key) and all("!" <= each <= "~" for each in key)


def _check_positive(name: str, value: object, *, optional: bool) -> None:
    if value is None and optional:
        return
    number = isinstance(value, (int, float)) and not isinstance(value, bool)
    if not number or not 0 < float(str(value)) < float("inf"):
        raise UsageError(f"{name} must be a number above 0, got {value!r}")


def _check_extra(extra: object) -> None:
    if not isinstance(extra, Mapping):
        kind = type(extra).__name__
        raise UsageError(f"extra must be a table of fields for each request, got a {kind}")
    reserved = sorted({"messages", "model", "stream", "n"} & set(extra))
    if reserved:
        raise UsageError(f"extra cannot set {', '.join(reserved)}, which glmkit fills itself")
    try:
        json.dumps(dict(extra))
    except (TypeError, ValueError) as error:
        raise UsageError(f"extra must be plain values that JSON has: {error}") from error
