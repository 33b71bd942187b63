"""A conversation with a folder of documents: what the app, the evaluation and programs share."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from glmkit import DataError, Policy, UsageError

from .answer import AnsweringModel, Mode
from .retrieve import KnowledgeQuery, Retriever

if TYPE_CHECKING:
    from glmkit import Chunk, Glmkit, Passage, Usage

    from .base import KnowledgeBase, UpdateReport
    from .settings import Settings


@dataclass(frozen=True)
class Turn:
    """One question with all that is known about its answer."""

    question: str
    answer: str
    mode: Mode
    model: str
    sources: tuple[Passage, ...]
    usage: Usage
    timings_ms: dict[str, float]
    note: str | None = None
    """Why it was answered the way it was, where that may surprise."""

    def as_dict(self) -> dict[str, Any]:
        """Return the turn as ``--json`` prints it."""
        return {
            "question": self.question,
            "answer": self.answer,
            "refused": self.mode == "refuse",
            "mode": self.mode,
            "model": self.model,
            "sources": [
                {
                    "path": each.path,
                    "location": each.location,
                    "score": each.score,
                    "text": each.text,
                }
                for each in self.sources
            ],
            "usage": asdict(self.usage),
            "timings_ms": {name: round(value, 1) for name, value in self.timings_ms.items()},
        }


@contextmanager
def open_base(
    app: Glmkit, folder: Path, encoder: str | None = None
) -> Iterator[tuple[KnowledgeBase, UpdateReport]]:
    """Open the knowledge base of ``folder`` and bring its index up to date.

    :raises UsageError: if there is no such folder, or nothing in it can be read.
    """
    if not folder.exists():
        # Said before an encoder is fetched for nothing.
        raise UsageError(f"no such folder or file: {folder}; name one that holds documents")
    from .base import KnowledgeBase

    loaded = app.load_encoder(encoder)
    with KnowledgeBase.open(folder, home=app.config.home, encoder=loaded) as base:
        report: UpdateReport = app.watch(base.update())
        yield base, report


class Session:
    """A conversation about one knowledge base.

    :param model: the chat model's name, None for the configured one.
    :param loading: how to load it: the other parameters of ``Glmkit.load_model``.
    """

    def __init__(
        self,
        app: Glmkit,
        retriever: Retriever,
        settings: Settings,
        *,
        model: str | None = None,
        loading: Mapping[str, Any] | None = None,
    ) -> None:
        self.query = KnowledgeQuery(
            retriever, settings.top_k, settings.threshold, settings.log_unanswered
        )
        fallback = settings.when_missing == "fallback"
        where = {name: (loading or {}).get(name) for name in ("engine", "server")}
        speaks = settings.answer != "extract" or fallback or model is not None
        self.answerer = AnsweringModel(
            lambda: app.load_model(model, **(loading or {})),
            info=app.describe_model(model, **where) if speaks else None,
            query=self.query,
            answer=settings.answer,
        )
        self.chat = app.chat(
            self.answerer,
            policy=Policy.FALLBACK if fallback else Policy.REFUSE,
            settings={"knowledge": self.query},
        )
        self.last: Turn | None = None
        """The last finished turn."""

    def ask(self, question: str) -> Iterator[Chunk]:
        """Yield the answer; afterwards :attr:`last` tells all about it."""
        started = time.perf_counter()
        first_ms: float | None = None
        self.last = None
        self.answerer.begin_turn()
        said: list[str] = []
        for chunk in self.chat.stream(question):
            if chunk.text and first_ms is None:
                first_ms = (time.perf_counter() - started) * 1000
            said.append(chunk.text)
            if chunk.finish_reason is not None:
                total_ms = (time.perf_counter() - started) * 1000
                self.last = self._turn(question, "".join(said), chunk, first_ms, total_ms)
            yield chunk

    def answer(self, question: str) -> Turn:
        """Return the finished turn of ``question``."""
        for _ in self.ask(question):
            pass
        if self.last is None:
            raise DataError(f"the answer to {question!r} ended before it was complete")
        return self.last

    def answer_alone(self, question: str) -> str:
        """Return the answer to ``question``, asked as the first of a conversation."""
        self.chat.reset()
        return self.answer(question).answer

    def _turn(
        self, question: str, text: str, chunk: Chunk, first_ms: float | None, total_ms: float
    ) -> Turn:
        from glmkit import Usage

        mode = self.answerer.mode
        retrieve_ms = self.query.last.elapsed_ms if self.query.last else 0.0
        return Turn(
            question=question,
            answer=text,
            mode=mode,
            model=self.answerer.name,
            sources=chunk.sources,
            usage=chunk.usage or Usage(),
            timings_ms={
                "retrieve": retrieve_ms,
                "first_token": total_ms if first_ms is None else first_ms,
                "total": total_ms,
            },
            note=self._note(question, mode, chunk.sources),
        )

    def _note(self, question: str, mode: Mode, sources: tuple[Passage, ...]) -> str | None:
        if mode == "fallback":
            return "not from the knowledge base: nothing in it passed the threshold"
        if mode != "extract":
            return None
        return self.answerer.why_not_generated(question, sources)
