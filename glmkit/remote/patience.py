"""How long to ask again: exponential back-off with jitter, bounded in tries and in time."""

from __future__ import annotations

import math
import random
import time
from collections.abc import Callable

from .faults import FailingError, ShutError, TransientError
from .pace import Pace

TRIES = 10
TRIES_UNHEARD = 3
"""Where nobody has ever answered: a wrong address, or a server that is not running."""
FIRST_PAUSE_S = 0.5
LONGEST_PAUSE_S = 30.0


class Patience:
    """Waits between the tries of one request.

    :param pace: whose stopping ends a wait.
    :param patience_s: how long to go on after the first failure.
    :param heard: tells whether the server has ever answered.
    """

    def __init__(self, pace: Pace, patience_s: float, *, heard: Callable[[], bool]) -> None:
        self._pace, self._patience_s = pace, patience_s
        self._heard = heard
        self._failed = 0
        self._first: float | None = None

    def wait(self, error: TransientError) -> None:
        """Sleep before the next try.

        :raises ShutError: if nobody answers at all.
        :raises FailingError: if this has gone on for too long.
        :raises StoppedError: if the work was stopped.
        """
        self._failed += 1
        now = time.monotonic()
        self._first = now if self._first is None else self._first
        until = now + self._pause(error)
        if self._failed >= self._most(error) or until > self._first + self._patience_s:
            raise self._given_up(error, until - now) from error
        self._pace.tell(error, until - now)
        self._pace.sleep_until(until)

    def _most(self, error: TransientError) -> float:
        """Return how often to try: a server that was there may be starting again."""
        if not error.gone:
            return TRIES
        return math.inf if self._heard() else TRIES_UNHEARD

    def _pause(self, error: TransientError) -> float:
        if error.wait_s is not None:
            return error.wait_s + random.uniform(0, 0.1)
        longest = min(LONGEST_PAUSE_S, FIRST_PAUSE_S * 2.0 ** (self._failed - 1))
        return longest * random.uniform(0.5, 1)

    def _given_up(self, error: TransientError, pause: float) -> ShutError | FailingError:
        if error.gone:
            return ShutError(f"{error}; is the server running, and the base URL right?")
        if error.wait_s is not None and pause > self._patience_s:
            return FailingError(
                f"{error}; it asks to wait {pause:.0f} s, more than patience_s "
                f"({self._patience_s:g}): try again later"
            )
        return FailingError(f"{error}; asked {self._failed} times, try again later")
