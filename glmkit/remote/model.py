"""A chat model that a server runs."""

from __future__ import annotations

import weakref
from collections.abc import Generator, Iterable, Iterator, Sequence
from contextlib import closing, contextmanager

from ..answers import Outcome, SideBySideModel
from ..errors import GlmkitError, OfflineError, ServerError, UsageError
from ..generation import SPECIAL
from ..models.passages import Shortening, checked
from ..servers import Server
from ..types import (
    Ask,
    Chunk,
    GenerationOptions,
    Message,
    MessageLike,
    Passage,
    Reply,
)
from .crowd import answered_by_many
from .faults import (
    FailingError,
    MissingEndpointError,
    ShutError,
    TooLongError,
    TransientError,
    UnknownModelError,
    UnwantedFieldError,
)
from .line import Line
from .pace import Pace, Rates
from .patience import Patience
from .wire import Json, Reading, fields_of, model_of, turns_of, whole_reply

CONCURRENCY = 16
"""Answers of a batch side by side where nobody said how many."""
_MANY = 1 << 30
_LISTING_S = 10.0
"""How long to ask for the list of models, which whoever names one does without."""
_MENDABLE = (TooLongError, UnknownModelError, UnwantedFieldError)
"""What a changed request may do about, as long as nothing was answered."""


class RemoteModel(SideBySideModel):
    """A chat model behind a server that speaks OpenAI's protocol.

    :param name: what the server calls it.
    :param server: where it is and how to treat it.
    :param languages: ISO 639-1 codes that it answers in; None where nobody said.
    """

    honours = SPECIAL

    def __init__(
        self, name: str, server: Server, *, languages: frozenset[str] | None = None
    ) -> None:
        self.name = name
        self.server = server
        self.languages = languages
        self._line = Line(server)
        self._rates = Rates(server.requests_per_minute, server.tokens_per_minute)
        self._dialect = _Dialect()
        weakref.finalize(self, self._line.close)

    def close(self) -> None:
        """Close the connections that are kept for the next question."""
        self._line.close()

    def stream(
        self, messages: Sequence[MessageLike], options: GenerationOptions | None = None
    ) -> Iterator[Chunk]:
        """Yield the answer piece by piece; closing the iterator cancels it, also for the server.

        :raises UsageError: at once, if the conversation cannot be answered.
        """
        return self._question(messages, options, self._line, Pace(_MANY)).streamed()

    def reply(
        self, messages: Sequence[MessageLike], options: GenerationOptions | None = None
    ) -> Reply:
        """Return the whole answer.

        :raises ServerError: if it cannot be had; says what the server said.
        """
        return self._question(messages, options, self._line, Pace(_MANY)).whole()

    def answers(
        self, asked: Iterable[Ask], *, concurrency: int | None = None
    ) -> Generator[Outcome, None, None]:
        """Yield (key, reply) as answers finish; one that cannot be had is an error, not raised.

        Conversations are drawn as room comes free. Closing the iterator cancels what still runs.

        :param concurrency: answers side by side; None: 16.
        :raises ServerError: if no other row would fare better: nobody answers, no access, no such
            model, or one request after the other fails.
        """
        many = concurrency or CONCURRENCY
        line, pace = Line(self.server, connections=many), Pace(many)

        def answer(ask: Ask) -> Reply:
            return self._question(ask.conversation, ask.options, line, pace).whole()

        yield from answered_by_many(answer, asked, many, stop=(pace.stop, line.close))

    def _question(
        self,
        messages: Sequence[MessageLike],
        options: GenerationOptions | None,
        line: Line,
        pace: Pace,
    ) -> _Question:
        turns = checked([Message.of(each) for each in messages])
        given = options or GenerationOptions()
        return _Question(self, turns, given, line=line, pace=pace)


class _Dialect:
    """What was learnt about the fields that a server takes."""

    def __init__(self) -> None:
        self.length_field = "max_tokens"
        self.counts_streams = True

    def learn(self, error: UnwantedFieldError) -> None:
        """Do without a field from now on; the second refusal of the same one is an error."""
        if error.field == "stream_options" and self.counts_streams:
            self.counts_streams = False
        elif error.field == "max_tokens" and self.length_field == "max_tokens":
            self.length_field = "max_completion_tokens"
        else:
            raise ServerError(f"{error}, although it was not sent") from error


class _Question:
    """One conversation, asked until it is answered or nothing more can be done."""

    def __init__(
        self,
        model: RemoteModel,
        messages: list[Message],
        options: GenerationOptions,
        *,
        line: Line,
        pace: Pace,
    ) -> None:
        self._model, self._messages, self._options = model, messages, options
        self._name = model_of(model.name, options)
        self._line, self._pace = line, pace
        self._patience = Patience(pace, model.server.patience_s, heard=lambda: line.heard)
        self._dropped = 0
        self._turns = turns_of(messages)

    def whole(self) -> Reply:
        """Return the answer, which comes in one piece."""
        while True:
            with self._mending(), self._turn() as reserved:
                reply = whole_reply(self._line.ask(self._body()), self._passages)
                used = reply.usage
                self._model._rates.correct(reserved, used.prompt_tokens, used.completion_tokens)
                return reply

    def streamed(self) -> Iterator[Chunk]:
        """Yield the answer piece by piece."""
        done = False
        while not done:
            with self._mending(), self._turn():
                yield from self._heard()
                done = True

    def _heard(self) -> Iterator[Chunk]:
        reading = Reading(self._passages)
        try:
            with closing(self._line.listen(self._body(stream=True))) as pieces:
                for piece in pieces:
                    text = reading.push(piece)
                    if text:
                        yield Chunk(text, logprobs=reading.told())
        except (TransientError, *_MENDABLE) as error:
            if not reading.begun and not reading.ended:
                raise
            if not reading.ended:
                raise ServerError(f"{error}, in the middle of the answer; ask again") from error
        yield from reading.finish()

    @property
    def _passages(self) -> tuple[Passage, ...]:
        return self._messages[-1].passages

    def _body(self, *, stream: bool = False) -> Json:
        """Return what is sent."""
        dialect = self._model._dialect
        body: Json = {"model": self._name, **self._turns}
        body[dialect.length_field] = self._options.max_tokens
        body |= fields_of(self._options)
        if stream:
            body["stream"] = True
            if dialect.counts_streams:
                body["stream_options"] = {"include_usage": True}
        return {**body, **self._model.server.extra}

    @contextmanager
    def _turn(self) -> Iterator[int]:
        """Wait until the rates and the server allow one more request; yield the tokens reserved."""
        letters = sum(len(each.content) for each in self._messages)
        at, reserved = self._model._rates.reserve(letters // 4, self._options.max_tokens)
        self._pace.sleep_until(at)
        with self._pace.turn() as began:
            try:
                yield reserved
            except (TransientError, ServerError) as error:
                self._model._rates.give_back(reserved)
                if isinstance(error, TransientError) and error.busy:
                    # A longer wait is not waited for: this question is given up, others go on.
                    wait_s = min(error.wait_s or 0.0, self._model.server.patience_s)
                    self._pace.refused(began, wait_s, error)
                raise
            self._pace.answered()

    @contextmanager
    def _mending(self) -> Iterator[None]:
        """Change what was wrong with a request, or wait, so that it can be sent again.

        :raises GlmkitError: if neither helps.
        """
        try:
            yield
        except TransientError as error:
            self._patience.wait(error)
        except UnwantedFieldError as error:
            self._model._dialect.learn(error)
        except TooLongError as error:
            self._shorten(error)
        except UnknownModelError as error:
            raise self._unknown(error) from error

    def _shorten(self, error: TooLongError) -> None:
        """Leave out what the local engines would leave out, twice as much with each try."""
        self._dropped = max(1, 2 * self._dropped)
        rest = Shortening(self._messages)
        self._messages = rest.without(min(self._dropped, rest.most))
        turns = turns_of(self._messages)
        if turns == self._turns:
            raise error
        self._turns = turns

    def _unknown(self, error: UnknownModelError) -> GlmkitError:
        """Say what the server has instead; a row's own adapter is that row's error only."""
        try:
            offered = self._line.models()
        except (GlmkitError, TransientError):
            offered = []
        names = f"; it serves {', '.join(offered[:20])}" if offered else ""
        kind = ServerError if self._name != self._model.name else ShutError
        return kind(f"{error}{names}; name one of its models with --model")


def connect(
    name: str | None, server: Server, *, offline: bool = False, **others: object
) -> RemoteModel:
    """Return a model that a server runs.

    :param name: what the server calls it; None: the only one that it has.
    :param server: where it is and how to treat it.
    :param offline: refuse every server but one on this machine.
    :param others: options of the local engine, which are refused if they are set.
    :raises UsageError: if an option is none of this engine's, or the server has several models.
    :raises OfflineError: if the network is needed and switched off.
    :raises ServerError: if the server has to be asked and cannot be.
    """
    for option, value in others.items():
        if value is not None:
            raise UsageError(
                f"the openai engine takes no {option} (got {value!r}); it belongs to where the "
                "server is started" + _SERVED.get(option, "")
            )
    if offline and not server.local:
        raise OfflineError(
            f"{server.shown} is not on this machine, and offline mode is on; switch it off with "
            "--online, or name a server on localhost"
        )
    return RemoteModel(name or only_model(server), server)


_SERVED = {
    "adapter": ": serve the adapter as a model (vLLM: --lora-modules NAME=PATH) and name that one",
}


def _models_of(server: Server) -> list[str]:
    with closing(Line(server)) as line:
        patience = Patience(Pace(1), min(server.patience_s, _LISTING_S), heard=lambda: line.heard)
        while True:
            try:
                return line.models()
            except TransientError as error:
                patience.wait(error)


def only_model(server: Server) -> str:
    """Return the name of the only model that a server has.

    :raises UsageError: if there are several, naming them.
    :raises ServerError: if it cannot be reached, has none, or does not say.
    """
    try:
        names = _models_of(server)
    except (FailingError, MissingEndpointError) as error:
        raise ServerError(f"cannot list the models: {error}; name one with --model") from error
    if not names:
        raise ServerError(f"{server.shown} has no model; load one there, then ask again")
    if len(names) > 1:
        shown = ", ".join(names[:20]) + (", ..." if len(names) > 20 else "")
        raise UsageError(f"{server.shown} has {len(names)} models; name one with --model: {shown}")
    return names[0]
