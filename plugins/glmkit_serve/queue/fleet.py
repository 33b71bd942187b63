"""Worker processes: each loads the model for itself; one that ends before its time is replaced."""

from __future__ import annotations

import logging
import multiprocessing
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from multiprocessing.context import SpawnProcess
from typing import TYPE_CHECKING

from glmkit import Glmkit, GlmkitError

from .database import Database, DatabaseError, open_queue
from .post import Post, portable

if TYPE_CHECKING:
    from .worker import Worker

log = logging.getLogger(__name__)

HOPELESS = 78
"""Exit code of a worker that would fail again: it cannot load its model, for one."""
_LOOK_S = 0.2
_SHORT_LIFE_S = 10.0
_LONGEST_PAUSE_S = 30.0


@contextmanager
def hired(app: Glmkit, database: Database, post: Post) -> Iterator[Worker]:
    """Load what answers, and have a worker that is told to stop when the block ends.

    :raises GlmkitError: if something cannot be loaded.
    """
    from ..api.served import Serving
    from ..settings import Settings
    from .worker import Worker

    slots = post.settings.slots
    serving = Serving.open(app, Settings(concurrency=slots, max_waiting=slots), post.wanted)
    try:
        yield Worker(database, post.settings, serving.by_name, options=post.options)
    finally:
        serving.close()


class Fleet:
    """Keeps a number of worker processes running.

    :param post: what they do.
    :param count: how many, 1 or more.
    :param hopeless: set when no worker can begin.
    """

    def __init__(self, post: Post, count: int, hopeless: threading.Event) -> None:
        self._post: Post = portable(post)
        self._spawn = multiprocessing.get_context("spawn")
        self._seats = [_Seat() for _ in range(count)]
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="fleet", daemon=True)
        self._hopeless = hopeless

    def start(self) -> None:
        """Start the processes, and watch them from a thread."""
        for seat in self._seats:
            self._fill(seat)
        self._thread.start()

    @property
    def pids(self) -> list[int]:
        """The processes that run."""
        found = (seat.process for seat in self._seats)
        return [each.pid for each in found if each and each.pid and each.is_alive()]

    def stop(self) -> None:
        """Tell all to stop, and wait until they have given back what they had taken on."""
        self._over.set()
        self._thread.join()
        processes = [seat.process for seat in self._seats if seat.process is not None]
        for process in processes:
            process.terminate()
        until = time.monotonic() + self._post.settings.stop_s + 5
        for process in processes:
            process.join(max(0.0, until - time.monotonic()))
            if process.is_alive():
                log.warning("worker %s did not stop and is killed", process.pid)
                process.kill()
                process.join()

    def _fill(self, seat: _Seat) -> None:
        seat.process = self._spawn.Process(target=work, args=(self._post,), daemon=False)
        seat.process.start()
        seat.began = time.monotonic()

    def _watch(self) -> None:
        while not self._over.wait(_LOOK_S):
            for seat in self._seats:
                if seat.process is None or seat.process.is_alive():
                    continue
                if seat.process.exitcode == HOPELESS:
                    self._hopeless.set()
                    self._over.set()
                    return
                self._replace(seat)

    def _replace(self, seat: _Seat) -> None:
        """Begin anew, after a pause that grows while workers end soon after they began."""
        assert seat.process is not None
        now = time.monotonic()
        if seat.again is None:
            code = seat.process.exitcode
            short = now - seat.began < _SHORT_LIFE_S
            seat.pause_s = min(_LONGEST_PAUSE_S, 2 * (seat.pause_s or 0.25)) if short else 0.0
            seat.again = now + seat.pause_s
            log.warning("a worker ended (%s); another begins in %.1f s", code, seat.pause_s)
        if now >= seat.again:
            seat.again = None
            self._fill(seat)


@dataclass
class _Seat:
    """Room for one worker process."""

    process: SpawnProcess | None = None
    began: float = 0.0
    pause_s: float = 0.0
    again: float | None = None


def work(post: Post) -> None:
    """Be a worker until told to stop, or until the process that began this one is gone."""
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(message)s")
    # The terminal's Ctrl-C reaches all; who began us says when to stop.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        app = Glmkit(post.config)
        with (
            closing(open_queue(post.settings)) as database,
            hired(app, database, post) as worker,
        ):
            _until_told(worker)
    except GlmkitError as error:
        log.error("%s", error)
        away = isinstance(error, DatabaseError)  # which may be there again for the next one
        raise SystemExit(1 if away else HOPELESS) from error


def _until_told(worker: Worker) -> None:
    # Until now the signal ended the process, as nothing was taken on that had to be given back.
    told: list[int] = []  # an event would have a lock, which the signal may find taken
    signal.signal(signal.SIGTERM, lambda number, frame: told.append(number))
    parent = multiprocessing.parent_process()
    thread = threading.Thread(target=worker.run, name="worker")
    thread.start()
    while thread.is_alive() and not told and (parent is None or parent.is_alive()):
        thread.join(_LOOK_S)
    worker.stop()
    thread.join()
