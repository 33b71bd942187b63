"""What goes wrong on the way to a server: what may pass, what one row caused, what ends a job."""

from __future__ import annotations

import json
import re
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import timezone
from email.utils import parsedate_to_datetime
from typing import Any

from ..errors import ServerError
from .wire import OPTIONAL

TRANSIENT = frozenset((408, 409, 425, 429, 500, 502, 503, 504, 520, 521, 522, 523, 524, 529))
BUSY = frozenset((429, 503, 529))
"""Answers that ask for fewer requests."""
_EMPTY_PURSE = re.compile(
    r"insufficient.{0,3}(quota|balance|funds)|exceeded your current quota|余额不足", re.I
)
_TOO_LONG = re.compile(
    r"context[ _-]?(length|size|window)|exceed_context|maximum (context|model|input)|"
    r"max_model_len|(prompt|input|request|message).{0,40}too (long|large|many tokens)|"
    r"longer than the model",
    re.I,
)
_ABOUT_MODEL = re.compile(r"\bmodel\b", re.I)
_NO_MODEL = re.compile(
    r"\bmodel\b.{0,80}\b(not (exist|found|valid|available)|not a valid|does ?n[o']t exist|unknown)|"
    r"(unknown|invalid|no such|not a valid) model|模型不存在",
    re.I,
)


_NEWER = "max_completion_tokens"
"""What some models want ``max_tokens`` to be called."""


class ShutError(ServerError):
    """No request can succeed: no access, no such model, nobody there. Ends a job."""


class ForbiddenError(ShutError):
    """No access; some servers also say so of a single question that they will not answer."""


class FailingError(ServerError):
    """One request failed again and again; others may do better."""


class TooLongError(ServerError):
    """The conversation does not fit into the model's context."""


class UnknownModelError(ServerError):
    """The server knows no model of that name."""


class MissingEndpointError(ShutError):
    """There is nothing at this address."""


class UnwantedFieldError(ServerError):
    """The server refuses a field that glmkit can do without."""

    def __init__(self, field: str) -> None:
        super().__init__(f"the server refuses {field}")
        self.field = field


class TransientError(Exception):
    """Something that may pass.

    :param wait_s: seconds that the server asked us to wait.
    :param busy: whether it asks for fewer requests.
    :param gone: whether nobody answered at all.
    """

    def __init__(
        self,
        message: str,
        *,
        wait_s: float | None = None,
        busy: bool = False,
        gone: bool = False,
    ) -> None:
        super().__init__(message)
        self.wait_s, self.busy, self.gone = wait_s, busy, gone


@dataclass(frozen=True)
class Refusal:
    """An answer that is none: its status and what the server says about it."""

    status: int
    text: str
    """The server's own message, one line, without our key and password."""
    where: str
    """The server, for a person."""
    wait_s: float | None = None

    def error(self, fields: Mapping[str, Any]) -> ServerError | TransientError:
        """Return the error for it.

        :param fields: what was sent; tells which fields can be left out.
        """
        for known in (self._of_access, self._of_transience, self._of_length):
            found = known()
            if found is not None:
                return found
        if self.status in (404, 405, 410):
            return self._missing()
        return self._refused(fields)

    def _of_access(self) -> ServerError | None:
        if self.status == 401:
            return ShutError(f"{self.said}; set OPENAI_API_KEY to a key that this server knows")
        if self.status == 403:
            return ForbiddenError(f"{self.said}; the key in OPENAI_API_KEY has no access to this")
        if self.status == 402 or (self.status == 429 and _EMPTY_PURSE.search(self.text)):
            return ShutError(f"{self.said}; the account has nothing left: pay, or use another key")
        return None

    def _of_transience(self) -> TransientError | None:
        if self.status not in TRANSIENT:
            return None
        return TransientError(self.said, wait_s=self.wait_s, busy=self.status in BUSY)

    def _of_length(self) -> ServerError | None:
        if self.status in (400, 413, 422) and _TOO_LONG.search(self.text):
            return TooLongError(
                f"{self.said}; shorten the question, ask for fewer max_tokens, or serve the model "
                "with a longer context"
            )
        return None

    def _missing(self) -> ServerError:
        if _ABOUT_MODEL.search(self.text):
            return UnknownModelError(self.said)
        return MissingEndpointError(f"{self.said}; check the base URL: it may lack /v1")

    def _refused(self, fields: Mapping[str, Any]) -> ServerError:
        if _NO_MODEL.search(self.text):
            return UnknownModelError(self.said)
        named = [each for each in fields if re.search(rf"\b{re.escape(each)}\b", self.text)]
        for each in ("stream_options", "max_tokens"):
            if each in named and (each != "max_tokens" or _NEWER in self.text):
                return UnwantedFieldError(each)
        ours = [each for each in named if each in OPTIONAL]
        advice = f"; leave out {', '.join(ours)}, or give another value" if ours else ""
        return ServerError(self.said + advice)

    @property
    def said(self) -> str:
        """What happened, in one line."""
        told = f": {self.text}" if self.text else ""
        return f"{self.where} answered {self.status}{told}"


def message_in(body: str, *, hidden: Callable[[str], str]) -> str:
    """Return a server's own words about an error, in one line of some 300 characters.

    :param hidden: takes out what must not be repeated, whatever the server says.
    """
    text = hidden(" ".join((_message(parsed(body)) or body).split()))
    if text[:1] == "<":
        text = ""  # a page for browsers
    return text if len(text) <= _LONGEST else text[: _LONGEST - 3] + "..."


_LONGEST = 300


def parsed(body: str | bytes) -> Any:  # noqa: ANN401
    """Return what a JSON text says; None where it is none."""
    try:
        return json.loads(body)
    except (ValueError, RecursionError):
        return None


def _message(value: Any) -> str:  # noqa: ANN401
    """Find the message in what vLLM, Ollama, llama-server, FastAPI and OpenAI itself send."""
    if isinstance(value, str):
        return value
    if isinstance(value, list):
        return "; ".join(filter(None, map(_message, value)))
    if not isinstance(value, dict):
        return ""
    place = value.get("loc")
    for key in ("error", "message", "detail", "msg"):
        found = _message(value.get(key))
        if found:
            where = ".".join(map(str, place)) + ": " if isinstance(place, list) else ""
            code = value.get("code")
            named = isinstance(code, str) and code not in found
            return f"{where}{found} ({code})" if named else where + found
    return ""


def status_in(error: object, default: int) -> int:
    """Return the HTTP status in an error that came inside an answer."""
    code = error.get("code") if isinstance(error, dict) else None
    code = int(code) if isinstance(code, str) and code.isdigit() else code
    return code if isinstance(code, int) and 400 <= code <= 599 else default


def retry_after(value: str | None) -> float | None:
    """Return the seconds, a year at most, that a ``Retry-After`` asks for: a number, or a date."""
    if not value:
        return None
    try:
        seconds = float(value)
    except ValueError:
        seconds = _until(value)
    return min(max(0.0, seconds), _YEAR_S) if seconds < float("inf") else None


_YEAR_S = 365 * 86400.0


def _until(date: str) -> float:
    try:
        then = parsedate_to_datetime(date)
    except ValueError:
        return float("inf")
    if then.tzinfo is None:
        then = then.replace(tzinfo=timezone.utc)
    return then.timestamp() - time.time()
