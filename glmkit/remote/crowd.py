"""Many questions side by side, in threads; rows are drawn as room comes free."""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from queue import SimpleQueue

from ..errors import GlmkitError, ServerError
from ..types import Ask, Reply
from .faults import FailingError, ForbiddenError, ShutError

IN_A_ROW = 5
"""So many requests that failed for good, and no answer in between, end a job."""

Settled = tuple[int, Reply | GlmkitError]
_Done = tuple[int, "Future[Reply]"]


def answered_by_many(
    answer: Callable[[Ask], Reply],
    asked: Iterable[Ask],
    many: int,
    *,
    stop: Iterable[Callable[[], None]],
) -> Generator[Settled, None, None]:
    """Yield answers as they are done; draw from ``asked``, in this thread, as room comes free.

    :param many: questions at once.
    :param stop: called at the end, so that whatever still runs ends at once.
    :raises ServerError: if going on would only make every row fail.
    """
    done: SimpleQueue[_Done] = SimpleQueue()
    pool = ThreadPoolExecutor(many, thread_name_prefix="glmkit-remote")
    try:
        yield from _Verdict().of(_ended(pool, answer, iter(asked), many, done))
    except GlmkitError:
        # What was answered in the meantime has been paid for.
        yield from _answered(done)
        raise
    finally:
        for each in stop:
            each()
        pool.shutdown(cancel_futures=True)


def _ended(
    pool: ThreadPoolExecutor,
    answer: Callable[[Ask], Reply],
    waiting: Iterator[Ask],
    many: int,
    done: SimpleQueue[_Done],
) -> Iterator[_Done]:
    """Keep so many questions running; yield each that has ended."""
    running, more = 0, True
    while more or running:
        if more and running < many:
            ask = next(waiting, None)
            more = ask is not None
            if ask is not None:
                running += 1
                _begin(pool, answer, ask, done)
        elif running:
            running -= 1
            yield done.get()
        while not done.empty():
            running -= 1
            yield done.get()


def _answered(done: SimpleQueue[_Done]) -> Iterator[Settled]:
    while not done.empty():
        key, ended = done.get()
        if ended.exception() is None:
            yield key, ended.result()


def _begin(
    pool: ThreadPoolExecutor,
    answer: Callable[[Ask], Reply],
    ask: Ask,
    done: SimpleQueue[_Done],
) -> None:
    future = pool.submit(answer, ask)
    future.add_done_callback(lambda ended: done.put((ask.key, ended)))


class _Verdict:
    """Tells a row that fails from a server that does.

    A request that failed again and again is put aside: with the next answer it turns out that the
    row is to blame; without one the server is, and its row stays to be asked another time.
    """

    def __init__(self) -> None:
        self._doubtful: list[tuple[int, GlmkitError]] = []
        self._heard = False
        self._answered = False

    def of(self, ended: Iterable[_Done]) -> Iterator[Settled]:
        """Yield what is settled, as questions end.

        :raises ServerError: if going on would only make every row fail.
        """
        for key, each in ended:
            yield from self._on(key, each)
        yield from self._last()

    def _on(self, key: int, ended: Future[Reply]) -> Iterator[Settled]:
        """Take one ended question; yield what is settled by it.

        :raises ServerError: if it shows that no other would fare better.
        """
        try:
            result: Reply | GlmkitError = ended.result()
        except ShutError as error:
            if not (self._answered and isinstance(error, ForbiddenError)):
                raise
            result = error
        except FailingError as error:
            self._doubtful.append((key, error))
            if len(self._doubtful) >= IN_A_ROW:
                raise self._stopping() from error
            return
        except GlmkitError as error:
            result = error
        self._heard = True
        self._answered = self._answered or isinstance(result, Reply)
        yield from self._doubtful
        self._doubtful.clear()
        yield key, result

    def _last(self) -> Iterator[Settled]:
        """Yield what is left when there are no more questions."""
        if self._doubtful and not self._heard:
            raise self._stopping()
        yield from self._doubtful

    def _stopping(self) -> ServerError:
        return ServerError(
            f"{len(self._doubtful)} requests failed one after the other, the last one so: "
            f"{self._doubtful[-1][1]}"
        )
