"""Samples to token ids: exactly those that the model sees when it answers.

An answer is learnt behind the prompt that :class:`~glmkit.models.prompts.Renderer` writes for what
was said before it, with the token that ends it. Where the prompt of a later turn goes on from
there (ChatGLM3, GLM-4, the embedded default), one row teaches both; where a format writes what is
history in another way than what is new (ChatGLM-6B, ChatGLM2-6B), every answer has a row of its
own.

What is longer than ``max_length`` and not skipped becomes several rows, each of which begins with
some of the turns before: the oldest go first, as they do in a chat, and the system message stays.
Answers that are compared with each other follow the same turns, as many as the longer one lets.
An answer that is too long with its question alone is cut, and then it has no end token.

No torch, so that processes that do this for many samples start quickly.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from itertools import groupby
from pathlib import Path
from typing import NamedTuple

import numpy as np

from ..dataset.samples import Sample
from ..errors import CheckpointError, UsageError
from ..models.passages import checked
from ..models.prompts import Piece, Renderer, open_renderer
from ..models.tokenizers import Tokenizer
from ..runtime.settings import Settings
from ..types import Message
from .examples import Example


class Encoded(NamedTuple):
    """What became of a sample."""

    rows: tuple[Example, ...]
    """None where it is skipped."""
    cut: int = 0
    """Answers that are too long with their question alone."""
    parted: int = 0
    """Rows that begin in the middle of the conversation."""
    reason: str = ""
    """Why it is skipped, or nothing of an answer is left, for a person."""


@dataclass(frozen=True)
class SampleEncoder:
    """Writes samples as one model reads them.

    :raises UsageError: if ``max_length`` or ``overlong`` is none that can be.
    """

    renderer: Renderer
    stops: frozenset[int]
    """The ids that end an answer."""
    max_length: int = 1024
    """Tokens of a row at most."""
    overlong: str = "truncate"
    """What becomes of longer samples: ``truncate`` or ``skip``."""

    def __post_init__(self) -> None:
        if self.max_length < 2:
            raise UsageError(f"max_length must be 2 or more, got {self.max_length!r}")
        if self.overlong not in ("truncate", "skip"):
            raise UsageError(f"overlong must be truncate or skip, got {self.overlong!r}")

    @classmethod
    def open(
        cls,
        folder: Path,
        *,
        family: str | None = None,
        system: str | None = None,
        max_length: int = 1024,
        overlong: str = "truncate",
    ) -> SampleEncoder:
        """Open the vocabulary and chat format of a model's folder; its weights are not read.

        :param system: said where a sample has no system message; None: the model's own.
        :raises CheckpointError: if the folder has none that glmkit knows.
        """
        renderer = open_renderer(folder, family=family)
        if renderer is None:
            raise CheckpointError(
                f"{folder} has no vocabulary or chat format that this version of glmkit reads, so "
                "no samples can be written for it"
            )
        if system is not None:
            renderer = replace(renderer, system=system)
        settings = Settings.open(folder, chat_format=renderer.format, tokenizer=renderer.tokenizer)
        return cls(renderer, settings.stop_ids, max_length, overlong)

    def encode(self, samples: Sequence[Sample]) -> list[Encoded]:
        """Return the rows of each sample; vocabularies are quicker with many texts at once."""
        known = _Known(self.renderer.tokenizer)
        for sample in samples:
            known.expect(self._texts(sample))
        known.read()
        return [self._encoded(sample, known) for sample in samples]

    def _texts(self, sample: Sample) -> Iterable[str]:
        """Yield what will be read of a sample, as far as it can be written."""
        try:
            for at in _learnt(sample):
                yield from _plain(self.renderer.pieces(checked(sample.messages[:at])))
                yield from _plain(self.renderer.format.answer(sample.messages[at]))
            if sample.beside is not None:
                yield from _plain(self.renderer.format.answer(sample.beside))
        except UsageError:  # told where the sample is encoded
            return

    def _encoded(self, sample: Sample, known: _Known) -> Encoded:
        try:
            return _Conversation(self, sample, known).encoded()
        except UsageError as error:
            return Encoded((), reason=str(error))

    def end(self, answer: Message) -> int:
        """Return the id that ends an answer.

        :raises CheckpointError: if the model has none.
        """
        chosen, tokenizer = self.renderer.format, self.renderer.tokenizer
        named = chosen.end(answer) if chosen.end else next(iter(chosen.stops), "")
        for found in (tokenizer.special(named), tokenizer.eos_id, *sorted(self.stops)):
            if found is not None and found in self.stops:
                return found
        raise CheckpointError(
            f"nothing ends the answers of this model: its vocabulary has no {named or 'stop token'}"
            ", and its config.json no eos_token_id"
        )


def _learnt(sample: Sample) -> list[int]:
    return [at for at, weight in enumerate(sample.weights) if weight > 0]


def _plain(pieces: Iterable[Piece]) -> Iterable[str]:
    return (each for each in pieces if isinstance(each, str))


class _Known:
    """The ids of texts, each read once."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        self._ids: dict[str, list[int]] = {}
        self._wanted: dict[str, None] = {}

    def expect(self, texts: Iterable[str]) -> None:
        """Note texts that will be asked for."""
        self._wanted.update(dict.fromkeys(texts))

    def read(self) -> None:
        """Read what is noted, all at once."""
        texts = [each for each in self._wanted if each not in self._ids]
        if texts:
            self._ids.update(zip(texts, self._tokenizer.encode_batch(texts), strict=True))

    def ids(self, pieces: Iterable[Piece]) -> list[int]:
        """Return the ids of pieces.

        :raises CheckpointError: if the vocabulary lacks a special token.
        """
        found: list[int] = []
        for piece in pieces:
            if not isinstance(piece, str):
                found += _special(self._tokenizer, piece.name)
                continue
            if piece not in self._ids:
                self._ids[piece] = self._tokenizer.encode(piece)
            found += self._ids[piece]
        return found


def _special(tokenizer: Tokenizer, name: str) -> list[int]:
    number = tokenizer.special(name)
    if number is None:
        raise CheckpointError(
            f"the vocabulary has no {name!r}, which the chat format needs; "
            "the folder mixes two models"
        )
    return [number]


@dataclass
class _Row:
    """A row that is being written: up to the end of an answer, without the token that ends it."""

    ids: list[int]
    weights: list[float]
    weight: float
    """Of the last answer, which may be empty."""
    answers: int = 1
    whole: bool = True
    """The last answer is not cut."""

    def goes_on(self, prompt: list[int], stops: frozenset[int]) -> bool:
        """Tell whether a prompt says what the row says, ends the answer, and goes on."""
        size = len(self.ids)
        return len(prompt) > size and prompt[size] in stops and prompt[:size] == self.ids

    def go_on(self, prompt: list[int], answer: list[int], weight: float) -> None:
        """Add a turn; the token that ends the answer before counts as that answer does."""
        new = prompt[len(self.ids) :]
        self.weights += [self.weight, *[0.0] * (len(new) - 1), *[weight] * len(answer)]
        self.ids += [*new, *answer]
        self.weight = weight
        self.answers += 1

    def closed(self, end: int) -> Example:
        """Return the row with its end token."""
        more = [end] if self.whole else []
        weights = self.weights + [self.weight] * len(more)
        return Example(np.array(self.ids + more, np.int32), np.array(weights, np.float32))


@dataclass
class _Conversation:
    """A sample on its way to rows."""

    encoder: SampleEncoder
    sample: Sample
    known: _Known
    start: int = 0
    """The oldest message that is kept, behind the system message."""
    parted: int = 0
    cut: int = 0
    lost: int = 0
    rows: list[Example] = field(default_factory=list)

    def encoded(self) -> Encoded:
        """Return its rows."""
        self.start, beside = self._told, self._beside
        row, last = None, 0
        for at in _learnt(self.sample):
            answer = self.known.ids(self.encoder.renderer.format.answer(self.sample.messages[at]))
            weight = self.sample.weights[at]
            prompt, size = self._prompt(at), max(len(answer), beside)
            fits = len(prompt) + size < self.encoder.max_length
            if not fits and self.encoder.overlong == "skip":
                return Encoded((), reason=self._too_long(len(prompt) + size + 1))
            if row and fits and row.goes_on(prompt, self.encoder.stops):
                row.go_on(prompt, answer, weight)
            else:
                many = row is not None and row.answers > 1
                self._close(row, last)
                row = self._begun(at, prompt, answer, weight, size=size, many=many)
            last = at
        self._close(row, last)
        reason = self._too_long(None) if self.lost else ""
        return Encoded(tuple(self.rows), self.cut, self.parted, reason)

    @property
    def _told(self) -> int:
        """How many system messages begin the conversation."""
        roles = [each.role for each in self.sample.messages]
        return next((at for at, role in enumerate(roles) if role != "system"), len(roles))

    @property
    def _beside(self) -> int:
        """Tokens of the answer that this one is compared with."""
        other = self.sample.beside
        answer = self.encoder.renderer.format.answer
        return 0 if other is None else len(self.known.ids(answer(other)))

    def _prompt(self, at: int) -> list[int]:
        """Return the prompt of the answer at ``at``, without what is left out."""
        messages = self.sample.messages
        told = [*messages[: self._told], *messages[self.start : at]]
        return self.known.ids(self.encoder.renderer.pieces(checked(told)))

    def _begun(
        self,
        at: int,
        prompt: list[int],
        answer: list[int],
        weight: float,
        *,
        size: int,
        many: bool,
    ) -> _Row | None:
        """Begin a row with an answer, leaving old turns out until it fits.

        :param size: tokens that must fit: those of the answer, or of a longer one beside it.
        :param many: rows of this conversation teach several answers: leave room for the next ones.
        """
        most = self.encoder.max_length
        if len(prompt) + size >= most:
            aim = most // 2 if many else most
            while len(prompt) + size >= aim and self._leaves_out(at):
                prompt = self._prompt(at)
        self.parted += self.start > self._told
        room = most - len(prompt)
        if room < 1:
            self.lost += 1
            return None
        whole = len(answer) < room
        self.cut += not whole
        answer = answer[:room]
        weights = [0.0] * len(prompt) + [weight] * len(answer)
        return _Row(prompt + answer, weights, weight, whole=whole)

    def _leaves_out(self, at: int) -> bool:
        """Leave the oldest turn out, if it is not the question itself."""
        roles = [each.role for each in self.sample.messages]
        later = (place for place in range(self.start + 1, at) if roles[place] == "user")
        found = next(later, None)
        self.start = self.start if found is None else found
        return found is not None

    def _close(self, row: _Row | None, at: int) -> None:
        if row is not None:
            self.rows.append(row.closed(self.encoder.end(self.sample.messages[at])))

    def _too_long(self, tokens: int | None) -> str:
        most = self.encoder.max_length
        if tokens is not None:
            return f"it takes {tokens:,} tokens, and max_length is {most:,}"
        return f"a question leaves no room for its answer within max_length {most:,}"


class Span(NamedTuple):
    """Neighbouring tokens of a row that count alike."""

    text: str
    weight: float
    tokens: int


def spans(example: Example, tokenizer: Tokenizer) -> list[Span]:
    """Return a row as text, parted where what is learnt begins and ends."""
    found = []
    for weight, some in groupby(zip(example.weights, example.ids, strict=True), lambda at: at[0]):
        ids = [int(each) for _, each in some]
        found.append(Span(tokenizer.decode(ids, skip_special=False), float(weight), len(ids)))
    return found
