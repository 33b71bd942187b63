"""A chat model that answers from documents: for any number of threads, with no memory of its own.

What servers and pages ask; :mod:`.session` is one conversation at a terminal.
"""

from __future__ import annotations

import logging
import threading
import time
import weakref
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from glmkit import GlmkitError, Message, ModelInfo, Policy, StreamedModel, UsageError
from glmkit.stopping import Stop, streamed

from .answer import AnsweringModel
from .base import KnowledgeBase
from .retrieve import KnowledgeQuery, Retriever
from .settings import Settings

if TYPE_CHECKING:
    from glmkit import (
        ChatModel,
        Chunk,
        GenerationOptions,
        Glmkit,
        MessageLike,
        Passage,
        Request,
    )

log = logging.getLogger(__name__)

LOOK_S = 10.0
"""How long what was indexed is good for before it is looked whether a document has changed."""


class StandingModel(StreamedModel):
    """Answers from one knowledge base, with citations, quotations or a refusal.

    :param base: open, and up to date.
    :param model: who speaks where sentences of the documents do not.
    """

    def __init__(
        self, app: Glmkit, base: KnowledgeBase, model: ChatModel, settings: Settings
    ) -> None:
        self.name = model.name
        self.languages: frozenset[str] | None = None  # quoting works in any language
        self._app, self._model, self._settings = app, model, settings
        self._library = _Library(base, Retriever(base, base.encoder, home=app.config.home))
        self._close = weakref.finalize(self, base.close)
        self._base = base
        self.skipped: tuple[tuple[str, str], ...] = ()
        """Documents that could not be read when the model was opened, each with the reason."""

    @classmethod
    def open(cls, app: Glmkit, path: Path, model: ChatModel) -> StandingModel:
        """Bring the index of ``path`` up to date, and return what answers from it.

        :raises UsageError: if there is nothing there that can be read.
        :raises ConfigError: if ``[plugins.knowledge]`` is wrong.
        """
        settings = Settings.of(app.plugin_config("knowledge"))
        if not path.exists():
            raise UsageError(f"no such folder or file: {path}; name one that holds documents")
        base = KnowledgeBase.open(path, home=app.config.home, encoder=app.shared_encoder())
        try:
            report = app.watch(base.update())
        except (GlmkitError, OSError) as error:
            if isinstance(error, UsageError) or not path.exists():
                base.remove()  # of use to nobody, and it may hold what is gone
            base.close()
            raise
        opened = cls(app, base, model, settings)
        opened.skipped = tuple(report.skipped)
        return opened

    def close(self) -> None:
        """Close the index."""
        self._close()

    def remove(self) -> None:
        """Close the index and delete it; the documents stay."""
        self._close()
        self._base.remove()

    def stream(
        self,
        messages: Sequence[MessageLike],
        options: GenerationOptions | None = None,
        *,
        timeout_s: float | None = None,
        stop: Stop | None = None,
    ) -> Iterator[Chunk]:
        """Yield the answer to the last message; its sources come with the last chunk.

        :param timeout_s: how long the whole answer may take; None: any time.
        :param stop: ends the answer, also while the model is waited for.
        :raises TimeLimitError: if the answer takes longer than it may.
        """
        speaker = _Speaker(self._model, timeout_s, stop)
        settings, told = self._settings, [Message.of(each) for each in messages]
        if not told:
            raise UsageError("a conversation needs a question")
        query = _Query(
            self._library.retriever, settings.top_k, settings.threshold, settings.log_unanswered
        )
        query.library = self._library
        answerer = AnsweringModel(
            lambda: speaker,
            info=ModelInfo(self._model.name, self._model.languages),
            query=query,
            answer=settings.answer,
        )
        fallback = settings.when_missing == "fallback"
        chat = self._app.chat(
            answerer,
            options=options,
            policy=Policy.FALLBACK if fallback else Policy.REFUSE,
            settings={"knowledge": query},
        )
        *chat.history, question = told
        yield from chat.stream(question)


class _Speaker(StreamedModel):
    """A model for one answer, which may take its time and be stopped."""

    def __init__(self, model: ChatModel, timeout_s: float | None, stop: Stop | None) -> None:
        self.name, self.languages = model.name, model.languages
        self._model, self._stop = model, stop
        self._timeout_s, self._begun = timeout_s, time.monotonic()

    def stream(
        self, messages: Sequence[MessageLike], options: GenerationOptions | None = None
    ) -> Iterator[Chunk]:
        """Yield the answer, in the time that is left."""
        most, passed = self._timeout_s, time.monotonic() - self._begun
        left = None if most is None else max(0.0, most - passed)
        return streamed(self._model, messages, options, timeout_s=left, stop=self._stop)


@dataclass
class _Library:
    """A knowledge base that several threads search, one at a time."""

    base: KnowledgeBase
    retriever: Retriever

    def __post_init__(self) -> None:
        self._lock = threading.Lock()
        self._looked = time.monotonic()

    def search(self, query: _Query, request: Request) -> list[Passage]:
        """Return what answers, from the documents as they are now, nearly."""
        with self._lock:
            if time.monotonic() - self._looked > LOOK_S:
                self._look()
            return KnowledgeQuery.passages(query, request)

    def _look(self) -> None:
        self._looked = time.monotonic()
        try:
            for _ in self.base.update():
                pass
        except GlmkitError as error:
            # Whoever asks is not to blame; what can be read is found all the same.
            log.warning("the documents cannot be read anew: %s", error)


class _Query(KnowledgeQuery):
    """What one turn asks, of a library that is shared."""

    library: _Library

    def passages(self, request: Request) -> list[Passage]:
        """Return the passages that pass the threshold, best first."""
        return self.library.search(self, request)
