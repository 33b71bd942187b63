"""When a request may begin: how many at once and a minute, and not while the server is busy."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

SILENT_S = 3.0
"""A longer wait is told to whoever waits, once for all requests that wait meanwhile."""
_NAP_S = 3600.0
"""Sleep no longer at once, as clocks of systems take no number of seconds."""

log = logging.getLogger(__name__)


class StoppedError(Exception):
    """The work that a request was for has ended."""


class Rate:
    """Spreads an amount evenly over the minutes.

    :param per_minute: None: without a limit.
    """

    def __init__(self, per_minute: float | None) -> None:
        self._each_s = 0.0 if per_minute is None else 60.0 / per_minute
        self._free_at = 0.0
        self._lock = threading.Lock()

    def reserve(self, amount: float) -> float:
        """Take ``amount``; return when that may begin, on the monotonic clock."""
        with self._lock:
            at = max(time.monotonic(), self._free_at)
            self._free_at = at + amount * self._each_s
            return at

    def correct(self, amount: float) -> None:
        """Take ``amount`` more, or give it back if it is negative, once the truth is known."""
        with self._lock:
            self._free_at += amount * self._each_s


class Rates:
    """The two limits that servers set: requests and tokens a minute."""

    def __init__(self, requests: float | None, tokens: float | None) -> None:
        self._requests, self._tokens = Rate(requests), Rate(tokens)
        self._lock = threading.Lock()
        self._answers, self._answered = 0, 0

    def reserve(self, prompt_tokens: int, max_tokens: int) -> tuple[float, int]:
        """Return when a request may begin, and how many tokens were set aside for it."""
        with self._lock:
            mean = self._answered / self._answers if self._answers else max_tokens
        tokens = prompt_tokens + min(max_tokens, int(mean))
        return max(self._requests.reserve(1), self._tokens.reserve(tokens)), tokens

    def give_back(self, reserved: int) -> None:
        """Give back what was set aside for a request that was not answered."""
        self._tokens.correct(-reserved)

    def correct(self, reserved: int, prompt_tokens: int, completion_tokens: int) -> None:
        """Take into account what a request really took; a server may not say, then nothing is."""
        if prompt_tokens + completion_tokens == 0:
            return
        self._tokens.correct(prompt_tokens + completion_tokens - reserved)
        with self._lock:
            self._answers += 1
            self._answered += completion_tokens


class Pace:
    """Lets requests begin: at most so many at once, and fewer after the server had too many.

    A refusal for being busy halves how many may run; every answer after that lets them grow again
    by a little, until all are as many as before.

    :param most: requests at once.
    """

    def __init__(self, most: int) -> None:
        self._most = most
        self._may = float(most)
        self._running = 0
        self._not_before = 0.0
        self._cut_at = 0.0
        self._told_until = 0.0
        self._why = ""
        self._stopped = False
        self._change = threading.Condition()

    @property
    def limit(self) -> int:
        """How many requests may run now."""
        return max(1, int(self._may))

    @contextmanager
    def turn(self) -> Iterator[float]:
        """Wait for room and hold it; yields when that was, on the monotonic clock.

        :raises StoppedError: if the work was stopped meanwhile.
        """
        with self._change:
            self._refuse_stopped()
            while not self._free():
                self._refuse_stopped()
            self._running += 1
        try:
            yield time.monotonic()
        finally:
            with self._change:
                self._running -= 1
                self._change.notify_all()

    def _free(self) -> bool:
        """Tell whether one more may run; wait for something to change if not."""
        pause = self._not_before - time.monotonic()
        if pause > 0:
            self.tell(self._why, pause)
            self._change.wait(min(pause, _NAP_S))
        elif self._running >= self.limit:
            self._change.wait()
        else:
            return True
        return False

    def sleep_until(self, at: float) -> None:
        """Sleep until a time of the monotonic clock.

        :raises StoppedError: as soon as the work is stopped.
        """
        with self._change:
            while not self._stopped and (pause := at - time.monotonic()) > 0:
                self._change.wait(min(pause, _NAP_S))
            self._refuse_stopped()

    def tell(self, why: object, pause: float) -> None:
        """Log a wait, if it is long and nobody has been told of one that is still going on."""
        if pause <= SILENT_S:
            return
        with self._change:
            now = time.monotonic()
            told, self._told_until = now < self._told_until, max(self._told_until, now + pause)
        if not told:
            log.warning("%s; asking again in %.0f s", why, pause)

    def answered(self) -> None:
        """Note that the server keeps up."""
        with self._change:
            self._may = min(self._most, self._may + 1 / self._may)
            self._change.notify_all()

    def refused(self, began: float, wait_s: float = 0.0, why: object = "") -> None:
        """Note that the server had too many requests.

        :param began: when the refused one began; those that began before the last cut say nothing
            new.
        :param wait_s: how long the server is left alone.
        :param why: what it said, to be told where requests wait long.
        """
        with self._change:
            now = time.monotonic()
            if began >= self._cut_at:
                self._may, self._cut_at = max(1.0, self._may / 2), now
            if now + wait_s > self._not_before:
                self._not_before, self._why = now + wait_s, str(why)

    def stop(self) -> None:
        """Let nothing begin any more, and wake whoever waits."""
        with self._change:
            self._stopped = True
            self._change.notify_all()

    def _refuse_stopped(self) -> None:
        if self._stopped:
            raise StoppedError
