"""An answer that others may end: by stopping it from any thread, or by a limit of time.

Light floor: no torch.
"""

from __future__ import annotations

import inspect
import math
import threading
import time
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from .errors import TimeLimitError
from .types import Chunk, GenerationOptions

if TYPE_CHECKING:
    from .types import ChatModel, MessageLike


class Stop(threading.Event):
    """Ends an answer from outside: who waits for the next piece of it wakes at once."""

    def __init__(self) -> None:
        super().__init__()
        self._wakes: set[Callable[[], None]] = set()

    def set(self) -> None:
        """End the answer."""
        super().set()
        for wake in tuple(self._wakes):
            wake()

    @contextmanager
    def waking(self, wake: Callable[[], None]) -> Iterator[None]:
        """Call ``wake`` when this is set, from any thread: it must neither wait nor raise."""
        self._wakes.add(wake)
        try:
            if self.is_set():
                wake()
            yield
        finally:
            self._wakes.discard(wake)


def streamed(
    model: ChatModel,
    messages: Sequence[MessageLike],
    options: GenerationOptions | None = None,
    *,
    timeout_s: float | None = None,
    stop: Stop | None = None,
) -> Generator[Chunk, None, None]:
    """Yield a model's answer until it ends, the time is over or it is stopped.

    A model whose ``stream`` takes ``timeout_s`` and ``stop`` ends at once, as :class:`Live` does;
    any other with its next piece.

    :param timeout_s: how long the whole answer may take; None: any time.
    :param stop: ends the answer, whose finish reason is ``"cancelled"`` then.
    :raises TimeLimitError: if the answer takes longer than it may.
    """
    stop, end = stop or Stop(), until(timeout_s)
    known = inspect.signature(model.stream).parameters
    limits: dict[str, Any] = {"timeout_s": timeout_s, "stop": stop}
    chunks = model.stream(messages, options, **{key: limits[key] for key in limits if key in known})
    try:
        while not stop.is_set():
            chunk = next(chunks, None)
            if chunk is None:
                return
            yield chunk
            if chunk.finish_reason is not None:
                return
            if time.monotonic() > end:
                raise late(timeout_s)
        yield Chunk("", "cancelled")
    finally:
        _close(chunks)


def until(timeout_s: float | None) -> float:
    """Return when a time is over, as ``time.monotonic`` has it."""
    return math.inf if timeout_s is None else time.monotonic() + timeout_s


def late(timeout_s: float | None) -> TimeLimitError:
    """Return the error of an answer that took longer than it may."""
    return TimeLimitError(f"no whole answer within {timeout_s:g} s")


def _close(chunks: Iterator[Chunk]) -> None:
    close = getattr(chunks, "close", None)
    if close is not None:
        close()
