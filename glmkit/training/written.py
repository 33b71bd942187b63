"""Answers that the model which trains writes, as tokens: what PPO and GRPO learn from.

Rows run side by side in the decode engine, over the very weights that learn, with whatever is put
on them. Each row draws from its own seed, so what is written depends on the weights, the rows and
their seeds alone.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from ..errors import CheckpointError, UsageError
from ..evaluation.predicting import text_of
from ..models.tokenizers import Detokenizer
from ..runtime.answers import Answer
from ..runtime.decode import columns
from ..runtime.rows import Row
from ..runtime.sampling import Sampler, StopText, make_sampler
from ..types import Message
from .evaluating import judged
from .learner import computing_in

if TYPE_CHECKING:
    from ..models.prompts import Renderer
    from ..runtime.engines.local import LocalModel


@dataclass(frozen=True)
class Asked:
    """A question on its way to an answer."""

    ids: Sequence[int]
    """The prompt."""
    messages: Sequence[Message]
    """What the prompt says."""
    seed: int
    """Of what is drawn."""


@dataclass(frozen=True)
class Written:
    """An answer."""

    ids: list[int]
    """Its tokens, with the one that ended it."""
    text: str
    """What a person reads of it."""
    ended: bool
    """The model ended it; else it was cut."""


def seed_of(*parts: int | str) -> int:
    """Return a seed that is the same for the same parts, on every machine, and far from others."""
    said = " ".join(map(str, parts)).encode()
    return int.from_bytes(hashlib.blake2b(said, digest_size=8).digest(), "big") >> 1


def write_answers(
    local: LocalModel,
    asked: Sequence[Asked],
    *,
    max_tokens: int,
    temperature: float = 1.0,
    computing: torch.dtype | None = None,
) -> list[Written]:
    """Answer all questions side by side; nothing but ``temperature`` shapes what is drawn.

    :param local: what the model that trains was loaded as.
    :param max_tokens: of an answer, with the token that ends it.
    :param computing: what products are taken in; see :class:`~.learner.Learner`.
    :raises CheckpointError: if the model has no chat format, or its scores are no numbers.
    :raises UsageError: if a prompt fills the model's context.
    :raises OutOfMemoryError: if not even one row fits.
    """
    renderer = local.renderer
    if renderer is None:
        raise CheckpointError(f"{local.name} has no chat format, so it cannot answer")
    begun = [_Begun.of(each, renderer, local, max_tokens, temperature) for each in asked]
    with judged(local.model), computing_in(computing, local.model.like.device):
        _run(local, [each.answer.row for each in begun], begun)
    return [each.written() for each in begun]


def _run(local: LocalModel, rows: Sequence[Row], begun: Sequence[_Begun]) -> None:
    of_row = dict(zip(rows, begun, strict=True))
    with closing(columns(local.model, iter(rows), slots=local.slots)) as steps:
        for column in steps:
            for row in column:
                of_row[row].pieces.append(of_row[row].answer.advance())
    for row in rows:
        if row.error is not None:
            raise row.error


@dataclass
class _Begun:
    """An answer in the making."""

    answer: Answer
    drawn: _Drawn
    pieces: list[str] = field(default_factory=list)

    @classmethod
    def of(
        cls,
        asked: Asked,
        renderer: Renderer,
        local: LocalModel,
        max_tokens: int,
        temperature: float,
    ) -> _Begun:
        """Begin an answer."""
        drawn = _Drawn(make_sampler(temperature=temperature, seed=asked.seed, prompt=asked.ids))
        room = local.context_length - len(asked.ids)
        if room < 1:
            raise UsageError(
                f"a prompt of {len(asked.ids)} tokens leaves no room for an answer in a context of "
                f"{local.context_length}"
            )
        row = Row(list(asked.ids), min(max_tokens, room), local.settings.stop_ids, drawn)
        chat_format = renderer.format
        text = Detokenizer(renderer.tokenizer, skip_special=chat_format.skip_special)
        reader = chat_format.reader(list(asked.messages))
        return cls(Answer(row, text, StopText(()), (), reader), drawn)

    def written(self) -> Written:
        """Return what became of it."""
        text = text_of("".join(self.pieces), self.answer.reader.calls)
        return Written(self.drawn.tokens, text, ended=self.answer.row.finish == "stop")


class _Drawn:
    """Draws tokens and remembers them, the one that ends the answer too, which its row does not."""

    def __init__(self, pick: Sampler) -> None:
        self._pick = pick
        self.tokens: list[int] = []

    def __call__(self, scores: Tensor) -> int:
        token = self._pick(scores)
        self.tokens.append(token)
        return token


def prompts_of(
    renderer: Renderer, conversations: Sequence[Sequence[Message]], *, room: int
) -> Iterator[list[int] | str]:
    """Yield the token ids of each prompt, or why it has none.

    :param room: tokens that a prompt may have; old turns are left out for it.
    """
    for messages in conversations:
        try:
            yield list(renderer.render(list(messages), room=room).ids)
        except UsageError as error:
            yield str(error)
