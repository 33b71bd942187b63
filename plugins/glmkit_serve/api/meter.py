"""What ``/metrics`` tells: requests, answers, tokens and times, as Prometheus reads them."""

from __future__ import annotations

from typing import TYPE_CHECKING

from prometheus_client import (
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    generate_latest,
)

if TYPE_CHECKING:
    from glmkit import Chunk

    from .served import Serving

_SECONDS = (0.05, 0.1, 0.25, 0.5, 1, 2, 5, 10, 20, 60, 120, 300, 600)
CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"


class Meter:
    """Counts of one server."""

    def __init__(self, serving: Serving) -> None:
        self._registry = registry = CollectorRegistry()
        self._requests = Counter(
            "glmkit_requests",
            "Requests that were answered, by route and status.",
            ["route", "status"],
            registry=registry,
        )
        self._seconds = Histogram(
            "glmkit_request_seconds",
            "Time from a request to the end of its response.",
            ["route"],
            buckets=_SECONDS,
            registry=registry,
        )
        self._first = Histogram(
            "glmkit_first_token_seconds",
            "Time from a question to the first piece of its answer, waiting included.",
            buckets=_SECONDS,
            registry=registry,
        )
        self._answers = Counter(
            "glmkit_answers",
            "Answers that ended, by model and reason.",
            ["model", "reason"],
            registry=registry,
        )
        self._tokens = Counter(
            "glmkit_tokens", "Tokens, by model and kind.", ["model", "kind"], registry=registry
        )
        for name, text, value in (
            ("glmkit_running", "Answers that are being written.", lambda: serving.live.running),
            ("glmkit_waiting", "Questions that wait.", lambda: serving.live.waiting),
        ):
            Gauge(name, text, registry=registry).set_function(value)

    def request(self, route: str, status: int, seconds: float) -> None:
        """Count a request.

        :param route: as it was declared, so that names in paths make no series of their own.
        """
        self._requests.labels(route, str(status)).inc()
        self._seconds.labels(route).observe(seconds)

    def first(self, seconds: float) -> None:
        """Note how long the first piece of an answer took."""
        self._first.observe(seconds)

    def answered(self, model: str, last: Chunk) -> None:
        """Count an answer by its last chunk."""
        self._answers.labels(model, last.finish_reason or "stop").inc()
        if last.usage is not None:
            self._tokens.labels(model, "prompt").inc(last.usage.prompt_tokens)
            self._tokens.labels(model, "completion").inc(last.usage.completion_tokens)

    def cancelled(self, model: str, count: int) -> None:
        """Count answers whose client left before they ended."""
        if count:
            self._answers.labels(model, "cancelled").inc(count)

    def text(self) -> bytes:
        """Return all counts as Prometheus reads them."""
        return generate_latest(self._registry)
