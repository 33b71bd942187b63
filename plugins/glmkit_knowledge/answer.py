"""Who answers: the model, the documents' own sentences, or nobody."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace
from functools import cached_property
from typing import TYPE_CHECKING, Literal

from glmkit import Message, Reply, StreamedModel, language_of

from .cite import CitingModel
from .extract import ExtractiveModel
from .retrieve import KnowledgeQuery

if TYPE_CHECKING:
    from glmkit import ChatModel, Chunk, GenerationOptions, MessageLike, ModelInfo, Passage

Mode = Literal["generate", "extract", "refuse", "fallback"]

_LANGUAGE_NAMES = {"zh": "Chinese", "en": "English"}


def _name(language: str) -> str:
    return _LANGUAGE_NAMES.get(language, language)


class _Reader(StreamedModel):
    """A chat model that is given only the passages in languages that it speaks, if there are any.

    Whoever marks its answer still sees all of them, so that the numbers are those of the sources.
    """

    def __init__(self, model: ChatModel) -> None:
        self._model = model
        self.name = model.name
        self.languages = model.languages

    def stream(
        self, messages: Sequence[MessageLike], options: GenerationOptions | None = None
    ) -> Iterator[Chunk]:
        """Yield the model's answer."""
        return self._model.stream(self._readable(messages), options)

    def batch(
        self,
        conversations: Iterable[Sequence[MessageLike]],
        options: GenerationOptions | None = None,
    ) -> Iterator[Reply]:
        """Yield one reply per conversation, in their order."""
        return self._model.batch([self._readable(each) for each in conversations], options)

    def _readable(self, messages: Sequence[MessageLike]) -> list[MessageLike]:
        *before, last = messages
        question = Message.of(last)
        spoken = self.languages
        readable = tuple(
            each for each in question.passages if spoken is None or language_of(each.text) in spoken
        )
        return [*before, replace(question, passages=readable or question.passages)]


class AnsweringModel(StreamedModel):
    """A chat model that generates, quotes or falls back, whichever the turn calls for.

    The chat model behind it is loaded when it has to speak for the first time, never before: a
    refusal or an extractive answer does without.

    :param load: loads the chat model.
    :param info: what is known about it without loading; None where nobody needs to know.
    :param query: this conversation's knowledge query, whose last reading is what gets answered.
    :param answer: ``auto``, ``generate`` or ``extract``.
    """

    def __init__(
        self,
        load: Callable[[], ChatModel],
        *,
        info: ModelInfo | None,
        query: KnowledgeQuery,
        answer: str = "auto",
    ) -> None:
        self._load = load
        self._info = info
        self._query = query
        self._answer = answer
        self._extractive = ExtractiveModel(query.retriever.sentences)
        self.name = info.name if info else self._extractive.name
        self.languages: frozenset[str] | None = None  # quoting works in any language
        self.mode: Mode = "refuse"
        """How the last turn was answered."""

    @cached_property
    def _model(self) -> ChatModel:
        return self._load()

    def why_not_generated(self, question: str, passages: Sequence[Passage]) -> str | None:
        """Say why ``auto`` quotes instead of generating, None where it generates.

        The model must speak the language of the question and that of the best passage.
        """
        languages = self._info.languages if self._info else None
        if self._answer != "auto" or languages is None:
            return None
        asked = language_of(question)
        found = language_of(passages[0].text) if passages else asked
        if asked in languages and found in languages:
            return None
        spoken = _name(found if asked in languages else asked)
        whose = f"{spoken}, the language of the best passage" if asked in languages else spoken
        return (
            f"quoting the documents: {self.name} does not speak {whose}; "
            "--answer generate makes it answer anyway, --model names another"
        )

    def begin_turn(self) -> None:
        """Note that a new turn starts: unless the model is asked, it was refused."""
        self.mode = "refuse"

    def stream(
        self, messages: Sequence[MessageLike], options: GenerationOptions | None = None
    ) -> Iterator[Chunk]:
        """Yield the answer to the last message from its passages, or without any."""
        question = Message.of(messages[-1])
        if not question.passages:
            self.mode = "fallback"
            return self._model.stream(messages, options)
        if self._answer == "extract" or self.why_not_generated(question.content, question.passages):
            self.mode = "extract"
            reading = self._query.last.reading if self._query.last else question.content
            return self._extractive.quote(reading, question.passages)
        self.mode = "generate"
        return CitingModel(_Reader(self._model)).stream(messages, options)
