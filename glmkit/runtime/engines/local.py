"""A model that runs in this process."""

from __future__ import annotations

from collections.abc import Generator, Iterable, Iterator, Sequence
from itertools import chain
from pathlib import Path
from typing import cast

import torch
from torch import Tensor

from ...errors import CheckpointError, UsageError
from ...models.about import read_about
from ...models.causal import CausalModel, ModelConfig, Start
from ...models.prompts import Renderer, open_renderer
from ...models.tokenizers import Tokenizer
from ...types import GenerationOptions, MessageLike
from ..answers import Answer
from ..decode import Column, Row, columns
from ..dressing import Within
from ..guidance import Guide
from ..lora import AdapterSet, Choice
from ..memory import memory_of
from ..reuse import Kept
from ..settings import Settings
from .adapted import Adapted
from .answering import Answering

_KEPT_SHARE = 32
"""The share of memory, one of so many parts, that is spent on what answered rows leave behind."""

_KEPT_OF_BOUND = 8
"""The same of what keys and values may take, where that is bounded."""


class LocalModel(Adapted, Answering):
    """A GLM in this process; implements :class:`glmkit.types.InspectableModel`."""

    def __init__(
        self,
        model: CausalModel,
        settings: Settings,
        *,
        name: str,
        renderer: Renderer | None = None,
        languages: frozenset[str] | None = None,
        family: str | None = None,
        folder: Path | None = None,
    ) -> None:
        super().__init__(model, folder)
        self.model = model
        self.settings = settings
        self.name = name
        self.languages = languages
        self.family = family
        """What the model is, of :data:`glmkit.models.families.FAMILIES`; None where unknown."""
        self.cache_room: int | None = None
        """Bytes that keys and values may take, kept ones too; None: as much as is free."""
        self._renderer = renderer
        self._kept = Kept(memory_of(model.like.device) // _KEPT_SHARE)
        self.slots = _slots(model)

    @classmethod
    def open(
        cls,
        model: CausalModel,
        folder: Path,
        *,
        name: str,
        languages: frozenset[str] | None = None,
        family: str | None = None,
    ) -> LocalModel:
        """Give a loaded model the vocabulary, chat format and settings of its folder.

        :raises CheckpointError: if one of the files is damaged.
        """
        about = read_about(folder)
        if languages is None and about.get("languages"):
            languages = frozenset(about["languages"])
        renderer = open_renderer(
            folder, family=family, languages=languages, vocab_size=model.config.vocab_size
        )
        chat_format = renderer.format if renderer else None
        tokenizer = renderer.tokenizer if renderer else None
        return cls(
            model,
            Settings.open(folder, chat_format=chat_format, tokenizer=tokenizer),
            name=name,
            renderer=renderer,
            languages=languages,
            family=family,
            folder=folder,
        )

    def anew(self) -> LocalModel:
        """Return the same model, which wears nothing and remembers no prompt.

        For a model whose weights have changed since it was asked.
        """
        return LocalModel(
            self.model,
            self.settings,
            name=self.name,
            renderer=self._renderer,
            languages=self.languages,
            family=self.family,
            folder=self.folder,
        )

    @property
    def config(self) -> ModelConfig:
        """The model's shape."""
        return self.model.config

    def bound_cache(self, size: int) -> None:
        """Let keys and values take so many bytes at most, those that are kept among them."""
        self._kept.limit = min(self._kept.limit, size // _KEPT_OF_BOUND)
        self.cache_room = size

    @property
    def context_length(self) -> int:
        """How many tokens a prompt and its answer may have together."""
        return self.config.context_length

    @property
    def renderer(self) -> Renderer | None:
        """What writes prompts, where the folder's vocabulary and chat format are known."""
        return self._renderer

    @property
    def tokenizer(self) -> Tokenizer | None:
        """The vocabulary, where the folder has one."""
        return self._renderer.tokenizer if self._renderer else None

    def _decode(self, rows: Iterable[Row | None], *, slots: int) -> Generator[Column, None, None]:
        drawn = _Drawn(iter(rows), self._adapters)
        for first in drawn.firsts():
            if first is None:
                yield ()
            else:
                yield from self._columns(first, drawn, slots=slots)

    def _columns(
        self, first: Row, others: Iterable[Row | None] = (), *, slots: int = 1
    ) -> Generator[Column, None, None]:
        """Decode rows, each with its own adapters, all with the prefix of the first."""
        own = self._adapters
        bound = None if self.cache_room is None else self.cache_room - self._kept.limit
        dress = Within(own, own.mix(first.adapter))
        rows = chain((first,), others)
        return columns(
            self.model,
            rows,
            slots=slots,
            dress=dress,
            kept=self._kept,
            lock=own.lock,
            limit=bound,
        )

    def logits(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
        *,
        adapter: Choice | Sequence[Choice] = None,
    ) -> Tensor:
        """Return next-token scores (B, T, V) of ``input_ids`` (B, T).

        :param attention_mask: (B, T), 1 = real token; None: all are. For ChatGLM-6B also the mask
            of its original code, bool (B, 1, T, T), True = may not see.
        :param position_ids: (B, T), or (B, 2, T) for ChatGLM-6B; None: each row's real tokens are
            placed as the model was trained.
        :param adapter: what all rows wear, or a list with one choice for each row; None: what is
            active. See :class:`~glmkit.types.GenerationOptions`.
        :raises UsageError: if the shapes differ or an id is not in the vocabulary.
        """
        ids = self._checked_ids(input_ids)
        mixes = self._mixes(adapter, ids.shape[0])
        own = self._adapters
        with own.lock, torch.inference_mode(), own.wearing(mixes):
            positions, mask = self._placed(ids, attention_mask, position_ids)
            return cast(Tensor, self.model(ids, positions, mask))

    def _placed(
        self, ids: Tensor, attention_mask: Tensor | None, position_ids: Tensor | None
    ) -> Start:
        """Bring what the caller gave into the form that models take."""
        if attention_mask is not None and attention_mask.dim() == 4:
            itself = torch.eye(ids.shape[1], dtype=torch.bool, device=ids.device)
            mask = ~attention_mask.to(ids.device, torch.bool) | itself
            if position_ids is None:
                position_ids = self.model.start(ids).positions
            return Start(position_ids.to(ids), mask)
        real = None if attention_mask is None else attention_mask.to(ids)
        if real is not None and real.shape != ids.shape:
            raise UsageError(f"attention_mask is {list(real.shape)}, input_ids {list(ids.shape)}")
        start = self.model.start(ids, real)
        return start if position_ids is None else Start(position_ids.to(ids), start.mask)

    def _checked_ids(self, ids: Tensor) -> Tensor:
        if ids.dim() != 2 or not ids.numel():
            raise UsageError(f"input_ids must be (rows, tokens), got {list(ids.shape)}")
        low, high = int(ids.min()), int(ids.max())
        if low < 0 or high >= self.config.vocab_size:
            raise UsageError(
                f"token ids must be 0 to {self.config.vocab_size - 1}, got {low} to {high}"
            )
        return ids.to(self.model.like.device, torch.long)

    def generate_ids(
        self,
        ids: Sequence[int],
        max_tokens: int,
        temperature: float = 0.0,
        *,
        adapter: Choice = None,
    ) -> list[int]:
        """Return the new token ids that follow ``ids``; a stop token is not among them.

        :raises UsageError: if the row does not fit the model.
        """
        options = GenerationOptions(max_tokens=max_tokens, temperature=temperature, adapter=adapter)
        self._checked_ids(torch.tensor([list(ids)], dtype=torch.long))
        if len(ids) >= self.context_length:
            raise UsageError(f"{len(ids)} tokens do not fit a context of {self.context_length}")
        row = self._row(list(ids), options, GenerationOptions(top_p=1.0, top_k=0))
        for _ in self._columns(row):
            pass
        if row.error is not None:
            raise row.error
        return row.new

    def _answer(self, messages: Sequence[MessageLike], options: GenerationOptions) -> Answer:
        renderer = self._renderer
        if renderer is None:
            raise CheckpointError(
                f"{self.name} has no vocabulary or chat format that this version of glmkit reads, "
                "so it cannot chat; logits() and generate_ids() work"
            )
        return self._written(messages, renderer, options)

    def _tokens(self) -> Tokenizer:
        if self.tokenizer is None:
            raise CheckpointError(
                f"{self.name} has no vocabulary that this version of glmkit reads"
            )
        return self.tokenizer

    def _row(
        self,
        ids: list[int],
        options: GenerationOptions,
        sampling: GenerationOptions,
        guide: Guide | None = None,
    ) -> Row:
        self._adapters.mix(options.adapter)  # refuses names that are not loaded, row by row
        return super()._row(ids, options, sampling, guide)


def _slots(model: CausalModel) -> int:
    """Return how many answers side by side pay.

    A processor has no gain of more once its arithmetic is busy, and with a large model the first
    answers would take long to come.
    """
    if model.like.device.type != "cpu":
        return _MOST
    return max(_FEW, min(_MOST, _NUMBERS // model.config.parameters))


_FEW, _MOST = 8, 64
_NUMBERS = 64_000_000_000


class _Drawn(Iterator[Row | None]):
    """Rows up to the first that wears another prefix, and after it, up to the next such."""

    def __init__(self, rows: Iterator[Row | None], adapters: AdapterSet) -> None:
        self._rows, self._adapters = rows, adapters
        self._ahead: Row | None = None
        self._run: object = None

    def firsts(self) -> Iterator[Row | None]:
        """Yield the rows that runs begin with; None where there is none for now."""
        for row in self._rows:
            yield self._begun(row)
            while self._ahead is not None:
                row, self._ahead = self._ahead, None
                yield self._begun(row)

    def _begun(self, row: Row | None) -> Row | None:
        self._run = None if row is None else self._prefix(row)
        return row

    def __next__(self) -> Row | None:
        row = next(self._rows)
        if row is not None and self._prefix(row) is not self._run:
            self._ahead = row
            raise StopIteration
        return row

    def _prefix(self, row: Row) -> object:
        return self._adapters.prefix_of(self._adapters.mix(row.adapter))
