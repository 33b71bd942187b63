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
        yield from _side_by_side(model, asked, concurrency)
        return
    for ask in asked:
        try:
            check_honoured(model, ask.options)
            yield ask.key, model.reply(ask.conversation, ask.options)
        except GlmkitError as error:
            yield ask.key, error


def _side_by_side(
    model: Answers, asked: Iterable[Ask], concurrency: int | None
) -> Generator[Outcome, None, None]:
    """Yield outcomes of a model that would leave out in silence what it does not know.

    A row that is refused waits until those before it are answered: then nothing piles up.
    """
    rest, refused = iter(asked), list[Outcome]()

    def known(first: Ask) -> Iterator[Ask]:
        """Yield rows up to the next that is refused."""
        yield first
        for ask in rest:
            error = _refusal(model, ask)
            if error is not None:
                refused.append((ask.key, error))
                return
            yield ask

    for first in rest:
        error = _refusal(model, first)
        if error is None:
            yield from model.answers(known(first), concurrency=concurrency)
            yield from refused
            refused.clear()
        else:
            yield first.key, error


def _refusal(model: object, ask: Ask) -> UsageError | None:
    try:
        check_honoured(model, ask.options)
    except UsageError as error:
        return error
    return None


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
        with closing(_side_by_side(self, _asked(conversations, options), None)) as outcomes:
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
