"""Many conversations at once: answers as they finish, or in the order of the questions.

Light floor: no torch. An *outcome* is the key of a question with its reply, or the error that
there is instead.
"""

from __future__ import annotations

from collections.abc import Generator, Iterable, Iterator, Sequence
from contextlib import closing
from itertools import repeat

from .errors import GlmkitError, UsageError
from .generation import check_honoured
from .types import Answers, Ask, ChatModel, GenerationOptions, MessageLike, Reply, StreamedModel

Outcome = tuple[int, Reply | GlmkitError]


def answered(
    model: ChatModel, asked: Iterable[Ask], *, concurrency: int | None = None
) -> Generator[Outcome, None, None]:
    """Yield outcomes as any model has them, side by side if it can."""
    if isinstance(model, Answers):
        yield from model.answers(asked, concurrency=concurrency)
        return
    for ask in asked:
        try:
            check_honoured(model, ask.options)
            yield ask.key, model.reply(ask.conversation, ask.options)
        except GlmkitError as error:
            yield ask.key, error


class SideBySideModel(StreamedModel):
    """Gives a class that can answer many side by side the other ways of answering many.

    Inherit it and write :meth:`answers`, beside :meth:`stream`.
    """

    def answers(
        self, asked: Iterable[Ask], *, concurrency: int | None = None
    ) -> Generator[Outcome, None, None]:
        """Yield outcomes as answers finish; what cannot be answered is an error, not raised.

        :param concurrency: answers side by side; None: what suits the model.
        """
        raise NotImplementedError

    def batch(
        self,
        conversations: Iterable[Sequence[MessageLike]],
        options: GenerationOptions | Iterable[GenerationOptions] | None = None,
    ) -> Iterator[Reply]:
        """Yield one reply per conversation, in their order.

        Several run side by side; conversations are drawn as room comes free, never all at once.

        :param options: for all of them, or one for each.
        :raises UsageError: if there are fewer options than conversations.
        :raises GlmkitError: if one cannot be answered.
        """
        with closing(self.answers(_asked(conversations, options))) as outcomes:
            yield from _in_order(outcomes)


def _in_order(outcomes: Iterable[Outcome]) -> Iterator[Reply]:
    """Yield the replies to questions 0, 1, 2, ...; what is early waits."""
    waiting: dict[int, Reply | GlmkitError] = {}
    due = 0
    for key, outcome in outcomes:
        waiting[key] = outcome
        while due in waiting:
            done = waiting.pop(due)
            if isinstance(done, GlmkitError):
                raise done
            due += 1
            yield done


def _asked(
    conversations: Iterable[Sequence[MessageLike]],
    options: GenerationOptions | Iterable[GenerationOptions] | None,
) -> Iterator[Ask]:
    """Number conversations, each with its options: the same for all, or one for each."""
    same = options or GenerationOptions()
    given = repeat(same) if isinstance(same, GenerationOptions) else iter(same)
    for key, each in enumerate(conversations):
        own = next(given, None)
        if own is None:
            raise UsageError("there are fewer options than conversations; give one for each")
        yield Ask(key, each, own)
