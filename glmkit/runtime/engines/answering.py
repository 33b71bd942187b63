"""What every model in this process does alike: rows of tokens become chunks and replies."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Generator, Iterable, Iterator, Sequence
from contextlib import closing
from itertools import repeat

from ...errors import UsageError
from ...types import Chunk, GenerationOptions, MessageLike, Reply, StreamedModel
from ..answers import Answer
from ..rows import Row

SLOTS = 8
"""Answers of a batch that run side by side."""

Column = tuple[Row, ...]
"""The rows that got a token, or ended, in one step."""


class Answering(StreamedModel, ABC):
    """Answers conversations out of rows that are decoded side by side."""

    @abstractmethod
    def _answer(self, messages: Sequence[MessageLike], options: GenerationOptions) -> Answer:
        """Render a conversation and begin its answer."""

    @abstractmethod
    def _decode(self, rows: Iterable[Row], *, slots: int) -> Generator[Column, None, None]:
        """Decode rows, at most ``slots`` at a time; yield once per step."""

    def stream(
        self, messages: Sequence[MessageLike], options: GenerationOptions | None = None
    ) -> Iterator[Chunk]:
        """Yield the answer piece by piece; closing the iterator cancels it.

        :raises UsageError: at once, if the conversation cannot be answered or does not fit.
        """
        return self._streamed(self._answer(messages, options or GenerationOptions()))

    def _streamed(self, answer: Answer) -> Iterator[Chunk]:
        with closing(self._decode([answer.row], slots=1)) as steps:
            for _ in steps:
                piece = answer.advance()
                if piece:
                    yield Chunk(piece)
        yield answer.last()

    def batch(
        self,
        conversations: Iterable[Sequence[MessageLike]],
        options: GenerationOptions | Iterable[GenerationOptions] | None = None,
    ) -> Iterator[Reply]:
        """Yield one reply per conversation, in their order.

        Several run side by side; conversations are drawn as room comes free, never all at once.

        :param options: for all of them, or one for each.
        :raises UsageError: if there are fewer options than conversations.
        """
        order: deque[Answer] = deque()
        by_row: dict[Row, Answer] = {}
        waiting = self._queued(_each_with(conversations, options), order)
        with closing(self._decode(waiting, slots=SLOTS)) as steps:
            for column in steps:
                by_row.update((answer.row, answer) for answer in order)
                for row in column:
                    by_row[row].pieces.append(by_row[row].advance())
                while order and order[0].row.finish is not None:
                    done = order.popleft()
                    del by_row[done.row]
                    yield Reply.join([*map(Chunk, done.pieces), done.last()])

    def _queued(
        self,
        asked: Iterable[tuple[Sequence[MessageLike], GenerationOptions]],
        order: deque[Answer],
    ) -> Iterator[Row]:
        for messages, options in asked:
            answer = self._answer(messages, options)
            order.append(answer)
            yield answer.row


def _each_with(
    conversations: Iterable[Sequence[MessageLike]],
    options: GenerationOptions | Iterable[GenerationOptions] | None,
) -> Iterator[tuple[Sequence[MessageLike], GenerationOptions]]:
    """Yield conversations with their options: the same for all, or one for each."""
    same = options or GenerationOptions()
    given = repeat(same) if isinstance(same, GenerationOptions) else iter(same)
    for each in conversations:
        own = next(given, None)
        if own is None:
            raise UsageError("there are fewer options than conversations; give one for each")
        yield each, own
