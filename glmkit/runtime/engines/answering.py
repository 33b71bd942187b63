"""What every model in this process does alike: rows of tokens become chunks and replies."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Container, Generator, Iterable, Iterator, Sequence
from contextlib import closing
from functools import cached_property
from typing import NamedTuple

from ...answers import Outcome, SideBySideModel
from ...errors import GlmkitError, UsageError
from ...generation import SPECIAL
from ...models.prompts import Renderer
from ...models.tokenizers import Detokenizer, Tokenizer
from ...texts import check_unicode
from ...types import Ask, Chunk, GenerationOptions, Message, MessageLike, News, Reply
from ..answers import Answer, Spelled
from ..forms import Form, form_of, form_of_text, told_of_tools
from ..guidance import Guidance, Guide
from ..odds import Odds
from ..rows import Row
from ..sampling import Sampler, StopText, make_sampler
from ..settings import Settings

_LONGEST_TOKEN = 256
"""Characters: no vocabulary has longer tokens; the longest are runs of blanks."""
Column = tuple[Row, ...]
"""The rows that got a token, or ended, in one step."""


class Answering(SideBySideModel, ABC):
    """Answers conversations out of rows that are decoded side by side."""

    honours = SPECIAL
    settings: Settings
    slots: int = 8
    """Answers of a batch that run side by side, where memory allows it and nothing else is said."""

    @property
    @abstractmethod
    def context_length(self) -> int:
        """How many tokens a prompt and its answer may have together."""

    @abstractmethod
    def _answer(self, messages: Sequence[MessageLike], options: GenerationOptions) -> Answer:
        """Render a conversation and begin its answer."""

    @abstractmethod
    def _tokens(self) -> Tokenizer:
        """Return the vocabulary.

        :raises CheckpointError: if there is none.
        """

    def begin(self, messages: Sequence[MessageLike] | str, options: GenerationOptions) -> Answer:
        """Begin the answer to a conversation, or go on with a plain text; from any thread.

        :raises UsageError: if it does not fit, or cannot be written for this model.
        """
        room = self._room(options)
        if not isinstance(messages, str):
            self._refuse_hopeless(Message.of(messages[-1]).content if messages else "", room)
            return self._answer(messages, options)
        check_unicode(messages, "the text to go on with")
        self._refuse_hopeless(messages, room)
        tokenizer = self._tokens()
        ids = tokenizer.wrap(tokenizer.encode(messages))
        if not 0 < len(ids) <= room:
            raise UsageError(
                f"the text takes {len(ids)} tokens and there is room for 1 to {room}; change it, "
                "or ask for fewer max_tokens"
            )
        form = form_of_text(options)
        text = Detokenizer(tokenizer) if form is None else Spelled(tokenizer, form.lead)
        guide = None if form is None else self._guide(form)
        return Answer(self._row(ids, options, options, guide), text, StopText(options.stop), ())

    def _written(
        self, messages: Sequence[MessageLike], renderer: Renderer, options: GenerationOptions
    ) -> Answer:
        """Begin the answer to a conversation, as a renderer writes it."""
        turns, tokenizer = [Message.of(each) for each in messages], renderer.tokenizer
        chat_format = renderer.format
        form = form_of(turns, options, chat_format, tokenizer.lead)
        calls = form is not None and form.calls
        told = told_of_tools(turns, chat_format) if calls or _has_called(turns) else turns
        if form is None:
            prompt = renderer.render(told, room=self._room(options))
            text = Detokenizer(tokenizer, skip_special=chat_format.skip_special)
            row = self._row(prompt.ids, options, options)
            reader = chat_format.reader(turns)
            return Answer(row, text, StopText(options.stop), prompt.passages, reader)
        opening = tokenizer.encode(form.opening) if form.opening else []
        prompt = renderer.render(told, room=self._room(options) - len(opening))
        row = self._row([*prompt.ids, *opening], options, options, self._guide(form))
        reader = form.reader(turns, chat_format)
        spelled = Spelled(tokenizer, form.lead)
        return Answer(row, spelled, StopText(options.stop), prompt.passages, reader)

    @cached_property
    def _guidance(self) -> Guidance:
        return Guidance(self._tokens(), self.settings.stop_ids)

    def _guide(self, form: Form) -> Guide:
        return self._guidance.guide(form.grammar)

    def _refuse_hopeless(self, text: str, room: int) -> None:
        """Refuse what cannot fit before it is made into tokens, which takes seconds a megabyte."""
        if len(text) > room * _LONGEST_TOKEN:
            raise UsageError(
                f"the text has {len(text)} characters, which cannot be {room} tokens or fewer; "
                "shorten it"
            )

    @abstractmethod
    def _decode(self, rows: Iterable[Row | None], *, slots: int) -> Generator[Column, None, None]:
        """Decode rows, at most ``slots`` at a time; yield once per step.

        :param rows: None among them says that there is none for now.
        """

    def _room(self, options: GenerationOptions) -> int:
        """Return how long a prompt may be: an answer is left an eighth of the context at least."""
        return self.context_length - min(options.max_tokens, max(1, self.context_length // 8))

    def _row(
        self,
        ids: list[int],
        options: GenerationOptions,
        sampling: GenerationOptions,
        guide: Guide | None = None,
    ) -> Row:
        """Begin a row; what the options leave open is as the model's authors want it."""
        own = self.settings
        pick: Sampler = make_sampler(
            temperature=_or(options.temperature, own.temperature),
            top_p=_or(sampling.top_p, own.top_p),
            top_k=int(_or(sampling.top_k, own.top_k)),
            repetition_penalty=_or(options.repetition_penalty, own.repetition_penalty),
            seed=options.seed,
            prompt=ids,
            guide=guide,
        )
        if options.logprobs is not None:
            pick = Odds(pick, self._tokens(), options.logprobs)
        room = min(options.max_tokens, self.context_length - len(ids))
        return Row(ids, room, own.stop_ids, pick, adapter=options.adapter, guide=guide)

    def stream(
        self, messages: Sequence[MessageLike], options: GenerationOptions | None = None
    ) -> Iterator[Chunk]:
        """Yield the answer piece by piece; closing the iterator cancels it.

        :raises UsageError: at once, if the conversation cannot be answered or does not fit.
        :raises GlmkitError: on the way, if the model fails or memory runs out.
        """
        return self._streamed(self._answer(messages, options or GenerationOptions()))

    def _streamed(self, answer: Answer) -> Iterator[Chunk]:
        with closing(self._decode([answer.row], slots=1)) as steps:
            for _ in steps:
                piece = answer.advance()
                if piece:
                    yield answer.chunk(piece)
        if answer.row.error is not None:
            raise answer.row.error
        yield answer.last()

    def answers(
        self, asked: Iterable[Ask], *, concurrency: int | None = None
    ) -> Generator[Outcome, None, None]:
        """Yield outcomes as answers finish; what cannot be answered is an error, not raised.

        :param concurrency: answers side by side; None: what suits the model.
        """
        queue = _Queue(self.begin, asked)
        with closing(self._decode(queue, slots=concurrency or self.slots)) as steps:
            for column in steps:
                yield from queue.failed()
                for row in column:
                    answer = queue.running[row].answer
                    answer.pieces.append(answer.advance())
                    if row.finish is not None:
                        yield queue.running.pop(row).settled()
        yield from queue.failed()

    def streams(
        self,
        asked: Iterable[Ask | None],
        *,
        concurrency: int | None = None,
        gone: Container[int] = (),
    ) -> Generator[list[News], None, None]:
        """Yield once per step what is new; see :class:`glmkit.types.Streams`."""
        queue = _Queue(self.begin, asked)
        news: list[News] = []
        with closing(self._decode(queue, slots=concurrency or self.slots)) as steps:
            for column in steps:
                for row in column:
                    if row in queue.running:  # else it was cancelled before it ran
                        news += queue.running[row].news()
                    if row.finish is not None:
                        queue.running.pop(row, None)
                yield [*queue.failed(), *news]
                news = queue.cancelled(gone)
        yield [*queue.failed(), *news]


class _Begun(NamedTuple):
    key: int
    answer: Answer

    def news(self) -> list[News]:
        """Return what the last column added, and the end where it is one."""
        piece, row = self.answer.advance(), self.answer.row
        news: list[News] = [(self.key, self.answer.chunk(piece))] if piece else []
        if row.error is not None:
            news.append((self.key, row.error))
        elif row.finish is not None:
            news.append((self.key, self.answer.last()))
        return news

    def settled(self) -> Outcome:
        """Return what became of it."""
        answer = self.answer
        if answer.row.error is not None:
            return self.key, answer.row.error
        return self.key, Reply.join([*map(Chunk, answer.pieces), answer.last()])


class _Queue:
    """Begins answers as the decoder draws their rows; what cannot be begun is put aside."""

    def __init__(
        self,
        begin: Callable[[Sequence[MessageLike] | str, GenerationOptions], Answer],
        asked: Iterable[Ask | None],
    ) -> None:
        self.running: dict[Row, _Begun] = {}
        self._begin, self._asked = begin, asked
        self._failed: list[tuple[int, GlmkitError]] = []

    def __iter__(self) -> Iterator[Row | None]:
        for ask in self._asked:
            if ask is None:
                yield None
                continue
            key, messages, options, begun = ask
            try:
                answer = begun if isinstance(begun, Answer) else self._begin(messages, options)
            except GlmkitError as error:
                self._failed.append((key, error))
                yield None  # so that whoever reads the columns can settle it
                continue
            self.running[answer.row] = _Begun(key, answer)
            yield answer.row

    def failed(self) -> list[tuple[int, GlmkitError]]:
        """Return what was put aside since the last call."""
        found, self._failed = self._failed, []
        return found

    def cancelled(self, gone: Container[int]) -> list[News]:
        """End the rows whose asker has left; return their last chunks."""
        left = [row for row, begun in self.running.items() if begun.key in gone]
        for row in left:
            row.finish = "cancelled"
        return [(begun.key, begun.answer.last()) for begun in map(self.running.pop, left)]


def _has_called(turns: Sequence[Message]) -> bool:
    """Tell whether calls were made of tools that are on offer; a model that had to knows both."""
    called = any(each.tool_calls or each.role in ("tool", "observation") for each in turns)
    return called and any(each.tools for each in turns)


def _or(given: float | None, default: float) -> float:
    return default if given is None else given
