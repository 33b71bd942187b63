"""Stand-ins for the tests of the page: a model that takes its time, documents, what draws."""

from __future__ import annotations

import asyncio
import io
import re
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import glmkit
import glmkit_serve
from glmkit import Chunk, DataError, Picture, Progress, Spec, StreamedModel, Usage, UsageError
from glmkit.testing import HashEncoder, make_app
from glmkit_serve.options import address_of, listening
from glmkit_serve.web import running
from glmkit_serve.web.settings import WebSettings
from glmkit_serve.web.talk import Wanted
from glmkit_serve.web.uploads import documents_in
from glmkit_serve.web.words import Words

EN, ZH = Words("en"), Words("zh")


class Scripted(StreamedModel):
    """Says what its script has for a question, word by word; else repeats the question.

    :param pause_s: between two words.
    :param journal: file that gets a line for each answer that ended: how many words were said.
    """

    name = "scripted"
    languages = None

    def __init__(
        self,
        script: dict[str, str] | None = None,
        pause_s: float = 0.0,
        journal: Path | None = None,
    ) -> None:
        self.script = script or {}
        self.pause_s = pause_s
        self.journal = journal
        self.seen: list[tuple] = []
        self.closed = threading.Event()

    def stream(self, messages, options=None):
        self.seen.append((tuple(messages), options))
        question = messages[-1].content
        if question == "fail":
            raise UsageError("the model does not like <this>")
        words = re.findall(r"\S+\s*", self.script.get(question, f"You said: {question}"))
        said = 0
        try:
            for said, word in enumerate(words[: options.max_tokens], 1):  # noqa: B007
                time.sleep(self.pause_s)
                yield Chunk(word)
            reason = "length" if len(words) > options.max_tokens else "stop"
            yield Chunk("", reason, Usage(1, len(words)))
        finally:
            self.closed.set()
            if self.journal is not None:
                with self.journal.open("a") as file:
                    file.write(f"{said} {question}\n")


class Cited(StreamedModel):
    """Answers through a model and names every document of a folder as a source."""

    languages = None

    def __init__(self, path: Path, model) -> None:
        self.path, self.model, self.name = path, model, model.name
        texts = {each: (path / each).read_text(errors="replace") for each in documents_in(path)}
        if not any(texts.values()):
            raise DataError("nothing in it can be read")
        self.skipped = tuple((each, "no text") for each, text in texts.items() if "\0" in text)
        self.texts = texts
        self.removed = False

    def stream(self, messages, options=None):
        found = tuple(
            glmkit.Passage(text, name, "line 1", 0.87, "documents")
            for name, text in self.texts.items()
        )
        for chunk in self.model.stream(messages, options):
            last = chunk.finish_reason is not None
            yield Chunk("", chunk.finish_reason, chunk.usage, found) if last else chunk

    def remove(self) -> None:
        self.removed = True


class Dots:
    """Draws one colour for each seed."""

    name = "dots"

    def __init__(self) -> None:
        self.worn: list = []

    def wear(self, loras) -> None:
        self.worn = list(loras)

    def draw(self, wish, options=None):
        from PIL import Image

        if options.size == (13, 13):
            raise UsageError("no picture of 13x13")
        drawn = []
        for number in range(options.count):
            for step in range(3):
                yield Progress("drawing", step, 3)
            seed = (options.seed or 0) + number
            file = io.BytesIO()
            Image.new("RGB", (8, 8), (seed % 256, 99, 10)).save(file, "PNG")
            drawn.append(Picture(file.getvalue(), wish, seed))
        return drawn


def load_dots(name, app) -> Dots:
    """Return what draws."""
    return Dots()


def load_hash(name, app) -> HashEncoder:
    """Return an encoder without a model."""
    return HashEncoder()


class Painting:
    """A plugin that draws, and has an encoder for documents."""

    @glmkit.hookimpl
    def register_image_models(self, register):
        register(Spec("dots", "Dots.", "web_parts:load_dots"))

    @glmkit.hookimpl
    def register_encoders(self, register):
        register(Spec("hash", "", "web_parts:load_hash"))


class Parts(Painting):
    """The same with documents, too."""

    @glmkit.hookimpl
    def knowledge_model(self, path, model, app):
        return Cited(path, model)


def make_page(home: Path, model=None, *, plugins=None, wishes=None, **settings):
    """Return the page's parts, in English."""
    others = {"parts": Parts()} if plugins is None else plugins
    app = make_app(home, {"encoder": "hash"}, serve=glmkit_serve, **others)
    voices = running.voices_of(model or Scripted(), {})
    return running.page_of(app, WebSettings(**settings), voices, wishes or running.Wishes())


@contextmanager
def served(page, keys=()) -> Iterator[str]:
    """Serve a page from a thread; yield its address."""
    import uvicorn

    with listening(page.settings.host, page.settings.port) as door:
        config = uvicorn.Config(
            _built(page, keys), log_level="warning", ws="none", timeout_graceful_shutdown=1
        )
        server = uvicorn.Server(config)
        thread = threading.Thread(target=server.run, kwargs={"sockets": [door]}, daemon=True)
        thread.start()
        while not server.started:
            time.sleep(0.01)
        try:
            yield address_of(door)
        finally:
            server.should_exit = True
            thread.join(10)


def _built(page, keys):
    """Build a site where a loop runs: elsewhere Gradio begins two that nobody closes."""

    async def build():
        return running.site_of(page, keys)

    with ThreadPoolExecutor(1) as thread:
        return thread.submit(asyncio.run, build()).result()


def ask(page, visit, question, words=EN, **wanted):
    """Return the turn when it has ended, and how often it was shown."""
    shown = list(page.talk.ask(visit, question, Wanted(**wanted), words))
    return shown[-1], len(shown)


def real_documents() -> dict[str, object]:
    """Return the plugins of a page that reads documents with the knowledge plugin."""
    import glmkit_knowledge

    return {"painting": Painting(), "knowledge": glmkit_knowledge}
