"""Work on pieces of a stream in several processes, in order, few pieces ahead.

The processes start anew ("spawn"), so that they work whatever threads this one has, and import
nothing but what the work needs.
"""

from __future__ import annotations

import signal
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from multiprocessing import get_context
from typing import Any, Protocol, TypeVar

from ..errors import DataError

PieceT = TypeVar("PieceT")
ResultT = TypeVar("ResultT")
ToolT_co = TypeVar("ToolT_co", covariant=True)
ToolT = TypeVar("ToolT")

_AHEAD = 3
"""Pieces for each process that wait or are worked on."""


class Opener(Protocol[ToolT_co]):
    """Opens in a process what its work needs; it is sent there."""

    def open(self) -> ToolT_co:
        """Open it."""
        ...


def in_processes(
    work: Callable[[ToolT, PieceT], ResultT],
    pieces: Iterator[PieceT],
    opener: Opener[ToolT],
    *,
    processes: int,
) -> Iterator[ResultT]:
    """Yield the results of ``work`` for each piece, in their order.

    :param work: a function of a module; takes what ``opener`` opens, and a piece.
    :raises DataError: if a process is killed.
    """
    pool = ProcessPoolExecutor(
        processes, get_context("spawn"), initializer=_begin, initargs=(work, opener)
    )
    waiting: deque[Future[ResultT]] = deque()
    try:
        for piece in pieces:
            waiting.append(pool.submit(_do, piece))
            if len(waiting) >= processes * _AHEAD:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
    except BrokenProcessPool as error:
        raise DataError(
            "a process that tokenises was ended by the system, perhaps for want of memory; run "
            "again: what is done is kept"
        ) from error
    finally:
        pool.shutdown(cancel_futures=True)


_own: list[Any] = []


def _begin(work: Callable[..., Any], opener: Opener[Any]) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the process that started this one tells it
    _own[:] = [work, opener.open()]


def _do(piece: Any) -> Any:  # noqa: ANN401
    work, tool = _own
    return work(tool, piece)
