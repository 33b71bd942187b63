"""One model for any number of threads: what they ask runs side by side in one batch.

    live = Live(app.load_model())
    for chunk in live.stream([{"role": "user", "content": "Hello"}]):  # in any thread
        ...

Light floor: no torch. One thread drives the batch; conversations come and go while it runs.
"""

from __future__ import annotations

import itertools
import threading
import time
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
from contextlib import closing
from types import TracebackType
from typing import TYPE_CHECKING

from .errors import BusyError, ClosedError, GlmkitError
from .generation import check_honoured
from .stopping import Stop, late, streamed, until
from .types import Answers, Ask, Begins, Chunk, GenerationOptions, News, StreamedModel, Streams

if TYPE_CHECKING:
    from .types import ChatModel, MessageLike

QUEUE = 128
"""Questions that may wait, where nothing else is said."""
LINGER_S = 60.0
"""How long an idle batch keeps its memory, and on a card what it recorded."""
_ASIDE = 8
"""Questions at once to a model that answers many side by side, but not in one batch."""


class Ticket:
    """A question that was put into the batch, and what has come of its answer.

    :param ask: the question.
    :param wake: called whenever there is something to :meth:`take`, from any thread: it must
        neither wait nor raise.
    :param leave: called when nobody wants the answer any more.
    """

    def __init__(self, ask: Ask, wake: Callable[[], None], leave: Callable[[Ticket], None]) -> None:
        self.ask = ask
        self.stop = Stop()
        """Ends the answer of a model that answers one at a time."""
        self.over = False
        """Whether all has been taken."""
        self._news: deque[Chunk | BaseException] = deque()
        self._wake, self._leave = wake, leave
        self._told = False

    @property
    def news(self) -> bool:
        """Whether there is something to take."""
        return bool(self._news)

    def put(self, piece: Chunk | BaseException) -> None:
        """Add the next piece of the answer, or what it ends in."""
        self._news.append(piece)
        if not self._told:
            self._told = True
            self._wake()

    def take(self) -> list[Chunk]:
        """Return what has come since the last call; never waits.

        :raises GlmkitError: if that is how the answer ended.
        """
        self._told = False
        taken: list[Chunk] = []
        while self._news and not self.over:
            piece = self._news[0]
            if isinstance(piece, BaseException):
                if taken:
                    self._wake()  # for the next call, which raises it
                    break
                self.over = True
                raise piece
            self._news.popleft()
            taken.append(piece)
            self.over = piece.finish_reason is not None
        return taken

    def close(self) -> None:
        """Leave; a running row is freed at the next step."""
        self.over = True
        self._leave(self)


class Live(StreamedModel):
    """A chat model that any thread may ask; all that is asked shares one continuous batch.

    A model without a batch of its own answers one question after the other.

    :param model: who answers. Nobody else should ask it meanwhile.
    :param concurrency: answers side by side, 1 or more; None: what suits the model.
    :param queue: questions that may wait beside those, 0 or more.
    """

    def __init__(
        self, model: ChatModel, *, concurrency: int | None = None, queue: int = QUEUE
    ) -> None:
        self.model = model
        self.name, self.languages = model.name, model.languages
        self.honours: frozenset[str] = getattr(model, "honours", frozenset())
        self.queue = queue
        self.concurrency = concurrency or _suited(model)
        self._keys = itertools.count()
        self._changed = threading.Condition()
        self._waiting: deque[Ticket] = deque()
        self._drawn: dict[int, Ticket] = {}
        self._gone: set[int] = set()
        self._threads: list[threading.Thread] = []
        self._shut = self._ending = False

    @property
    def waiting(self) -> int:
        """Questions that wait."""
        return len(self._waiting)

    @property
    def running(self) -> int:
        """Questions that are being answered."""
        return len(self._drawn)

    def __enter__(self) -> Live:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def ask(
        self,
        messages: Sequence[MessageLike] | str,
        options: GenerationOptions | None = None,
        *,
        wake: Callable[[], None],
    ) -> Ticket:
        """Put a question into the batch; what comes of it is taken from the ticket.

        The prompt is made here, in the asking thread, where the model has a way to; a prompt that
        cannot be made is what the ticket ends in.

        :param messages: a conversation, or a plain text to go on with; see
            :class:`~glmkit.types.Ask`.
        :param wake: called from another thread when there is something to take; see
            :class:`Ticket`.
        :raises BusyError: if as many wait as may.
        :raises ClosedError: if no more questions are taken.
        """
        asked = Ask(next(self._keys), messages, options or GenerationOptions())
        with self._changed:
            self._check_room()
        ticket = self._begun(Ticket(asked, wake, self._leave))
        if ticket.news:
            return ticket
        with self._changed:
            self._check_room()
            self._waiting.append(ticket)
            self._start()
            self._changed.notify_all()
        return ticket

    def _check_room(self) -> None:
        if self._shut:
            raise ClosedError(_CLOSED)
        if len(self._waiting) + len(self._drawn) >= self.concurrency + self.queue:
            raise BusyError(
                f"{self.concurrency} answers are being written and {self.queue} questions "
                "wait, which is all that may; ask again in a while"
            )

    def _begun(self, ticket: Ticket) -> Ticket:
        """Make the prompt, so that those who are being answered do not wait for it."""
        ask = ticket.ask
        try:
            check_honoured(self.model, ask.options)
            if isinstance(self.model, Begins):
                ticket.ask = ask._replace(begun=self.model.begin(ask.messages, ask.options))
        except GlmkitError as error:
            ticket.put(error)
        return ticket

    def stream(
        self,
        messages: Sequence[MessageLike],
        options: GenerationOptions | None = None,
        *,
        timeout_s: float | None = None,
        stop: Stop | None = None,
    ) -> Iterator[Chunk]:
        """Yield the answer piece by piece; closing the iterator frees its row.

        The question is asked when the first piece is wanted.

        :param timeout_s: how long the whole answer may take, waiting included; None: any time.
        :param stop: ends the answer while it is waited for; its finish reason is ``"cancelled"``.
        :raises BusyError: if as many wait as may.
        :raises TimeLimitError: if the answer takes longer than it may.
        :raises ClosedError: if no more questions are taken.
        """
        news, stop, end = threading.Event(), stop or Stop(), until(timeout_s)
        ticket = self.ask(messages, options, wake=news.set)
        try:
            with stop.waking(news.set):
                while not ticket.over:
                    left = min(max(0.0, end - time.monotonic()), threading.TIMEOUT_MAX)
                    if not news.wait(left):
                        raise late(timeout_s)
                    news.clear()
                    yield from ticket.take()
                    if stop.is_set() and not ticket.over:
                        yield Chunk("", "cancelled")
                        return
        finally:
            ticket.close()

    def drain(self, timeout_s: float) -> bool:
        """Take no more questions, and let those that were asked end.

        :return: whether all ended in time.
        """
        with self._changed:
            self._shut = True
            self._changed.notify_all()
            return self._changed.wait_for(self._idle, timeout_s)

    def close(self) -> None:
        """End whatever runs, which raises :class:`~glmkit.errors.ClosedError` for who waits."""
        with self._changed:
            self._shut = self._ending = True
            for ticket in (*self._waiting, *self._drawn.values()):
                ticket.put(ClosedError(_CLOSED))
            self._gone.update(self._drawn)
            for ticket in self._drawn.values():
                ticket.stop.set()
            self._waiting.clear()
            self._changed.notify_all()
        for thread in self._threads:
            if thread is not threading.current_thread():
                thread.join()

    def _idle(self) -> bool:
        return not self._waiting and not self._drawn

    def _leave(self, ticket: Ticket) -> None:
        with self._changed:
            if ticket.ask.key in self._drawn:
                self._gone.add(ticket.ask.key)
                ticket.stop.set()
            elif ticket in self._waiting:
                self._waiting.remove(ticket)
                self._changed.notify_all()

    # -- the thread ------------------------------------------------------------------------------

    def _start(self) -> None:
        """Begin the threads with the first question: one batch, or several that ask one by one."""
        if self._threads:
            return
        for _ in range(1 if isinstance(self.model, Streams) else self.concurrency):
            thread = threading.Thread(target=self._drive, name=f"live {self.name}", daemon=True)
            self._threads.append(thread)
            thread.start()

    def _drive(self) -> None:
        mine: dict[int, Ticket] = {}
        while self._awaited(None):
            try:
                with closing(self._steps(mine)) as steps:
                    for news in steps:
                        self._deliver(news, mine)
                        if not mine and not self._awaited(LINGER_S):
                            break
            # Whatever went wrong: those who wait are told, and the next batch begins afresh.
            except Exception as error:  # noqa: BLE001
                self._settle(mine, error)

    def _steps(self, mine: dict[int, Ticket]) -> Generator[Sequence[News], None, None]:
        model, drawn = self.model, self._draw(mine)
        if isinstance(model, Streams):
            return model.streams(drawn, concurrency=self.concurrency, gone=self._gone)
        return _one_by_one(model, drawn, mine)

    def _awaited(self, timeout_s: float | None) -> bool:
        """Wait until somebody asks; return False where nobody does, or no more."""
        with self._changed:
            self._changed.wait_for(lambda: self._waiting or self._shut, timeout_s)
            return bool(self._waiting) and not self._ending

    def _draw(self, mine: dict[int, Ticket]) -> Iterator[Ask | None]:
        """Yield what waits, None where nothing does, until all is over."""
        while not self._ending:
            with self._changed:
                ticket = self._waiting.popleft() if self._waiting else None
                if ticket is not None:
                    mine[ticket.ask.key] = self._drawn[ticket.ask.key] = ticket
            yield None if ticket is None else ticket.ask

    def _deliver(self, news: Iterable[News], mine: dict[int, Ticket]) -> None:
        ended: dict[int, Ticket] = {}
        for key, piece in news:
            mine[key].put(piece)
            if isinstance(piece, GlmkitError) or piece.finish_reason is not None:
                ended[key] = mine.pop(key)
        if ended:
            self._forget(ended)

    def _settle(self, mine: dict[int, Ticket], error: Exception) -> None:
        for ticket in mine.values():
            ticket.put(error)
        self._forget(mine)
        mine.clear()

    def _forget(self, ended: Iterable[int]) -> None:
        with self._changed:
            for key in ended:
                del self._drawn[key]
                self._gone.discard(key)
            self._changed.notify_all()


def _suited(model: ChatModel) -> int:
    """Return how many answers side by side suit a model."""
    if isinstance(model, Streams):
        return model.slots
    return _ASIDE if isinstance(model, Answers) else 1


_CLOSED = "no more questions are taken: this is being shut down"


def _one_by_one(
    model: ChatModel, asked: Iterable[Ask | None], tickets: Mapping[int, Ticket]
) -> Generator[Sequence[News], None, None]:
    """Answer questions one after the other, as :class:`~glmkit.types.Streams` has them."""
    for ask in asked:
        last: Chunk | GlmkitError | None = None
        if ask is not None:
            try:
                last = yield from _alone(model, ask, tickets[ask.key].stop)
            except GlmkitError as error:
                last = error
        # Only now, as nobody may draw from here for a while.
        yield [] if ask is None or last is None else [(ask.key, last)]


def _alone(model: ChatModel, ask: Ask, stop: Stop) -> Generator[Sequence[News], None, Chunk]:
    """Stream one answer; return its last chunk."""
    with closing(streamed(model, ask.conversation, ask.options, stop=stop)) as chunks:
        for chunk in chunks:
            if chunk.finish_reason is not None:
                return chunk
            yield [(ask.key, chunk)]
    return Chunk("", "cancelled")
