"""A worker: one engine in a process of its own, fed a few rows ahead of what it answers."""

from __future__ import annotations

import logging
import socket
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from typing import NamedTuple

from .... import __version__
from ....answers import answered
from ....errors import GlmkitError
from ....types import Ask, ChatModel, Reply

LINGER_S = 0.02
"""How long a report waits for more answers once there is one: fewer calls, and nobody waits."""

QUIET_S = 0.5
"""After so long a worker reports, also if there is nothing new."""

_PATIENCE_S = 0.5
"""How long running rows wait for the next one to be handed in before they run on without it."""


class Failed(NamedTuple):
    """An error on its way to another process; not every one could travel as it is."""

    kind: type[GlmkitError]
    said: str

    @classmethod
    def of(cls, error: GlmkitError) -> Failed:
        """Pack an error."""
        return cls(type(error), str(error))

    def error(self) -> GlmkitError:
        """Unpack it; an error of a kind that is made otherwise keeps its kind and its words."""
        error = self.kind.__new__(self.kind, self.said)
        error.args = (self.said,)
        return error


class Report(NamedTuple):
    """What became of a worker's rows since its last report."""

    done: list[tuple[int, Reply | Failed]]
    returned: list[int]
    """Rows that it gives back, not begun."""
    waiting: int
    """Rows that it has and has not begun."""
    warnings: list[str]
    """What it warned of."""
    fault: Failed | str | None = None
    """Why it can answer no more: an error to show, or what came unexpected."""


class Opened(NamedTuple):
    """What a worker says once it has its model."""

    version: str
    host: str
    warnings: list[str]
    fault: Failed | str | None


class Worker:
    """Loads a model and answers rows with it, in a thread beside the calls that bring them."""

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._asks: deque[Ask] = deque()
        self._more = True
        self._begun = 0
        """Rows that the engine has and has not answered."""
        self._done: list[tuple[int, Reply | Failed]] = []
        self._fault: Failed | str | None = None
        self._warnings = _Warnings()
        self._loaded = threading.Event()

    def open(self, load: Callable[[], ChatModel], concurrency: int | None) -> Opened:
        """Load the model and wait for rows."""
        logging.getLogger("glmkit").addHandler(self._warnings)
        # The model runs where it was loaded: torch keeps its number of threads by thread.
        threading.Thread(target=self._run, args=(load, concurrency), daemon=True).start()
        self._loaded.wait()
        return Opened(__version__, socket.gethostname(), self._warnings.taken(), self._fault)

    def exchange(self, asks: list[Ask], more: bool, give_back: int) -> Report:
        """Take rows in and report what happened since the last call, as soon as something has.

        :param more: whether rows will follow soon.
        :param give_back: how many rows that are not begun to return.
        """
        with self._changed:
            self._asks.extend(asks)
            self._more = more
            returned = [self._asks.pop().key for _ in range(min(give_back, len(self._asks)))]
            self._changed.notify_all()
            if not returned:
                self._wait(low=len(self._asks) // 2 if more else -1)
            done, self._done = self._done, []
            waiting = len(self._asks)
            return Report(done, returned, waiting, self._warnings.taken(), self._fault)

    def _wait(self, low: int) -> None:
        """Wait for an answer, or until the rows that wait are down to ``low``."""
        over = time.monotonic() + QUIET_S
        self._changed.wait_for(
            lambda: self._done or self._fault is not None or len(self._asks) <= low, QUIET_S
        )
        if self._done and self._fault is None:
            left = min(LINGER_S, over - time.monotonic())
            self._changed.wait_for(lambda: self._fault is not None or self._idle, max(0, left))

    @property
    def _idle(self) -> bool:
        return not self._asks and not self._begun

    def _run(self, load: Callable[[], ChatModel], concurrency: int | None) -> None:
        fault: Failed | str = "its thread was ended"
        try:
            model = load()
            self._loaded.set()
            while True:
                self._await_row()
                for key, reply in answered(model, self._feed(), concurrency=concurrency):
                    self._settle(key, reply)
        except GlmkitError as error:
            fault = Failed.of(error)
        except (Exception, SystemExit) as error:  # noqa: BLE001  the caller must learn of it
            fault = f"{type(error).__name__}: {error}"
        finally:
            with self._changed:
                self._fault = fault
                self._changed.notify_all()
            self._loaded.set()

    def _await_row(self) -> None:
        with self._changed:
            self._changed.wait_for(lambda: self._asks)

    def _feed(self) -> Iterator[Ask]:
        """Yield rows as long as there are any."""
        while True:
            with self._changed:
                if not self._asks and self._more:
                    self._changed.wait_for(lambda: self._asks or not self._more, _PATIENCE_S)
                if not self._asks:
                    return
                ask = self._asks.popleft()
                self._begun += 1
                self._changed.notify_all()
            yield ask

    def _settle(self, key: int, reply: Reply | GlmkitError) -> None:
        with self._changed:
            self._begun -= 1
            self._done.append((key, reply if isinstance(reply, Reply) else Failed.of(reply)))
            self._changed.notify_all()


class _Warnings(logging.Handler):
    """Keeps what was warned of until somebody asks; a job's terminal is on another machine."""

    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self._said: deque[str] = deque(maxlen=100)

    def emit(self, record: logging.LogRecord) -> None:
        """Keep a message."""
        self._said.append(record.getMessage())

    def taken(self) -> list[str]:
        """Return what came since the last call."""
        return [self._said.popleft() for _ in range(len(self._said))]
