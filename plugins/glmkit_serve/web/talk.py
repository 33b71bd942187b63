"""One turn on the page: ask, stream, stop, and say in plain words what went wrong."""

from __future__ import annotations

import time
from collections.abc import Generator, Iterator
from contextlib import closing
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, cast

from glmkit import (
    BusyError,
    ClosedError,
    GenerationOptions,
    GlmkitError,
    Message,
    TimeLimitError,
    UsageError,
)
from glmkit.stopping import streamed

from .escaping import as_markdown, as_text, closed, sources_html
from .visits import Turn

if TYPE_CHECKING:
    from glmkit import ChatModel, Chunk

    from .library import Library
    from .settings import WebSettings
    from .visits import Visit
    from .voices import Voice, Voices
    from .words import Words

PAUSE_S = 0.05
"""Between two sights of a growing answer: faster than this nobody reads."""


@dataclass(frozen=True)
class Wanted:
    """What a visitor chose beside the question."""

    voice: str | None = None
    base: str | None = None
    """The key of a knowledge base; empty or None: the model alone."""
    system: str | None = None
    temperature: float | None = None
    top_p: float | None = None
    max_tokens: float | None = None
    """None: as the model's own settings say; whole numbers come as fractions from browsers."""
    seed: str | None = None
    """Empty or None: by chance."""

    def options(self, settings: WebSettings, voice: Voice) -> GenerationOptions:
        """Return how tokens are picked.

        :raises UsageError: if a value is out of range: they come from browsers.
        """
        tokens = 512 if self.max_tokens is None else _whole("max_tokens", self.max_tokens)
        if tokens > settings.max_tokens:
            raise UsageError(f"max_tokens must be at most {settings.max_tokens}, got {tokens}")
        return GenerationOptions(
            max_tokens=tokens,
            temperature=self.temperature,
            top_p=self.top_p,
            seed=seed_of(self.seed),
            adapter=voice.worn,
        )


def seed_of(text: str | None) -> int | None:
    """Read a seed; None where it is left to chance.

    :raises UsageError: if it is no whole number.
    """
    if not (text or "").strip():
        return None
    try:
        return int(str(text))
    except ValueError as error:
        raise UsageError(f"a seed is a whole number, got {text!r:.60}") from error


def _whole(name: str, value: object) -> int:
    if isinstance(value, bool) or not isinstance(value, (int, float)) or value != int(value):
        raise UsageError(f"{name} must be a whole number, got {value!r}")
    return int(value)


class Talk:
    """What asks the models for the page.

    :param voices: who may be asked.
    :param library: what they may answer from.
    """

    def __init__(self, voices: Voices, library: Library, settings: WebSettings) -> None:
        self.voices = voices
        self.library = library
        self.settings = settings

    def ask(
        self, visit: Visit, question: str, wanted: Wanted, words: Words
    ) -> Generator[Turn, None, None]:
        """Ask; yield the turn whenever there is more to see of it, and once when it has ended.

        Closing the generator, or setting ``visit.stopped``, ends the answer; what was said stays.
        """
        if not visit.busy.acquire(blocking=False):
            return
        turn = Turn(question, ())
        try:
            if not visit.gone:
                visit.stopped.clear()
            visit.turns.append(turn)
            yield turn
            yield from self._answered(visit, turn, wanted, words)
        finally:
            turn.ended = turn.ended or "cancelled"
            visit.busy.release()

    def _answered(self, visit: Visit, turn: Turn, wanted: Wanted, words: Words) -> Iterator[Turn]:
        try:
            with closing(self._chunks(visit, turn, wanted, words)) as chunks:
                yield from _seen(turn, chunks)
        except GlmkitError as error:
            turn.ended, turn.problem = "error", in_words(error, words)
        except Exception:
            turn.ended, turn.problem = "error", words("broken")
            raise
        yield turn

    def _chunks(
        self, visit: Visit, turn: Turn, wanted: Wanted, words: Words
    ) -> Generator[Chunk, None, None]:
        voice = self.voices.of(wanted.voice)
        options = wanted.options(self.settings, voice)
        turn.voice, turn.adapter, turn.base = (
            voice.model.name,
            voice.adapter or "",
            wanted.base or "",
        )
        told = (wanted.system or "").strip()
        said = [Message("system", told)] if told else []
        earlier = visit.history()
        turn.messages = (*said, *earlier, Message("user", turn.question))
        model: ChatModel = voice.model
        if wanted.base:
            if not self.library.holds(wanted.base, visit):
                raise UsageError(words("no_documents", alone=words("base_none")))
            model = self.library.model(wanted.base, visit, voice.model)
        most = self.settings.timeout_s
        yield from streamed(model, turn.messages, options, timeout_s=most, stop=visit.stopped)


def _seen(turn: Turn, chunks: Iterator[Chunk]) -> Iterator[Turn]:
    """Put what comes into the turn; yield it now and then."""
    shown = 0.0
    for chunk in chunks:
        turn.answer += chunk.text
        if chunk.finish_reason is not None:
            turn.ended, turn.sources = chunk.finish_reason, chunk.sources
            break
        if time.monotonic() - shown >= PAUSE_S:
            yield turn
            shown = time.monotonic()


def in_words(error: GlmkitError, words: Words) -> str:
    """Say what went wrong in the visitor's language."""
    for kind, key in ((BusyError, "busy"), (TimeLimitError, "slow"), (ClosedError, "closing")):
        if isinstance(error, kind):
            return words(key)
    return words("failed", reason=str(error))


def rows_of(visit: Visit, words: Words) -> list[dict[str, Any]]:
    """Return the conversation as the page shows it: two messages a turn."""
    rows: list[dict[str, Any]] = []
    for turn in visit.turns:
        rows.append({"role": "user", "content": as_markdown(turn.question)})
        rows.append({"role": "assistant", "content": shown_of(turn, words)})
    return rows


def shown_of(turn: Turn, words: Words) -> str:
    """Return an answer with its notes and sources, as Markdown."""
    said = as_markdown(turn.answer)
    note = _note(turn, words)
    if turn.ended is None:
        return said or words("thinking")
    said = closed(said)
    if note:
        said = f'{said}\n\n<p class="note">{as_text(note)}</p>' if said.strip() else _alone(note)
    return said + sources_html(turn.sources, words)


def _alone(note: str) -> str:
    return f'<p class="note">{as_text(note)}</p>'


def _note(turn: Turn, words: Words) -> str:
    if turn.problem:
        return turn.problem
    keys = {"cancelled": "stopped", "length": "cut", "tool_calls": "wants_tools"}
    key = keys.get(cast("str", turn.ended))
    if key:
        return words(key)
    return "" if turn.answer.strip() or turn.ended is None else words("no_text")
