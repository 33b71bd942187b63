"""Any other causal language model, run by Hugging Face's transformers.

Models that bring their own code (``auto_map``) are never run: only what transformers itself knows.
Tokens are picked by our own samplers, so that options mean the same as everywhere; the model
keeps its own cache.

Shapes: B rows, T new tokens, S tokens so far, V vocabulary.
"""

from __future__ import annotations

import inspect
import logging
from collections.abc import Generator, Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import torch
from torch import Tensor

from ...errors import CheckpointError, OutOfMemoryError, UsageError
from ...models.about import read_about
from ...models.prompts import Renderer
from ...models.tokenizers import Tokenizer
from ...types import GenerationOptions, MessageLike
from ..answers import Answer
from ..memory import ran_out
from ..rows import Row, pick
from ..settings import Settings
from .answering import Answering, Column
from .foreign import opened
from .templated import Wrapped, template_format

if TYPE_CHECKING:
    from transformers import PreTrainedModel


log = logging.getLogger(__name__)


class TransformersModel(Answering):
    """A model that transformers runs; implements :class:`glmkit.types.InspectableModel`.

    :param tokenizer: None: ids only.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        tokenizer: Wrapped | None,
        settings: Settings,
        *,
        name: str,
        renderer: Renderer | None = None,
        languages: frozenset[str] | None = None,
    ) -> None:
        self.model = model
        self.settings = settings
        self.name = name
        self.languages = languages
        self.tokenizer: Tokenizer | None = tokenizer
        self._renderer = renderer
        self._vocabulary = cast(Tensor, model.get_input_embeddings().weight).shape[0]
        self._context_length = _context_length(model.config, tokenizer)
        self._takes = frozenset(inspect.signature(model.forward).parameters)

    @classmethod
    def open(
        cls,
        model: PreTrainedModel,
        tokenizer: Wrapped | None,
        folder: Path,
        *,
        name: str,
        languages: frozenset[str] | None = None,
    ) -> TransformersModel:
        """Give a loaded model the chat format and the settings of its folder."""
        about = read_about(folder)
        if languages is None and about.get("languages"):
            languages = frozenset(about["languages"])
        renderer = _renderer(folder, tokenizer, about.get("system", ""), languages)
        chat_format = renderer.format if renderer is not None else None
        settings = Settings.open(folder, chat_format=chat_format, tokenizer=tokenizer)
        return cls(model, tokenizer, settings, name=name, renderer=renderer, languages=languages)

    def logits(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
    ) -> Tensor:
        """Return next-token scores (B, T, V) of ``input_ids`` (B, T).

        :param attention_mask: (B, T), 1 = real token; None: all are.
        :param position_ids: (B, T); None: each row's real tokens counted from 0.
        :raises UsageError: if the shapes differ or an id is not in the vocabulary.
        """
        ids = self._checked_ids(input_ids)
        mask = torch.ones_like(ids) if attention_mask is None else attention_mask.to(ids)
        if mask.shape != ids.shape:
            raise UsageError(f"attention_mask is {list(mask.shape)}, input_ids {list(ids.shape)}")
        with torch.inference_mode():
            given = {"attention_mask": mask, "position_ids": _positions(mask)}
            if position_ids is not None:
                given["position_ids"] = position_ids.to(ids)
            return cast(Tensor, self.model(input_ids=ids, **self._known(given)).logits.float())

    def generate_ids(
        self, ids: Sequence[int], max_tokens: int, temperature: float = 0.0
    ) -> list[int]:
        """Return the new token ids that follow ``ids``; a stop token is not among them.

        :raises UsageError: if the row does not fit the model.
        """
        self._checked_ids(torch.tensor([list(ids)], dtype=torch.long))
        if len(ids) >= self.context_length:
            raise UsageError(f"{len(ids)} tokens do not fit a context of {self.context_length}")
        options = GenerationOptions(max_tokens=max_tokens, temperature=temperature)
        row = self._row(list(ids), options, GenerationOptions(top_p=1.0, top_k=0))
        for _ in self._decode([row], slots=1):
            pass
        if row.error is not None:
            raise row.error
        return row.new

    def _checked_ids(self, ids: Tensor) -> Tensor:
        if ids.dim() != 2 or not ids.numel():
            raise UsageError(f"input_ids must be (rows, tokens), got {list(ids.shape)}")
        low, high = int(ids.min()), int(ids.max())
        if low < 0 or high >= self._vocabulary:
            raise UsageError(f"token ids must be 0 to {self._vocabulary - 1}, got {low} to {high}")
        return ids.to(self.model.device, torch.long)

    def _known(self, given: dict[str, Any]) -> dict[str, Any]:
        """Return what this model's ``forward`` takes of the arguments."""
        return {name: value for name, value in given.items() if name in self._takes}

    def _answer(self, messages: Sequence[MessageLike], options: GenerationOptions) -> Answer:
        renderer = self._renderer
        if renderer is None:
            lacks = "tokenizer"
            if self.tokenizer is not None:
                lacks = "chat template (chat_template in its tokenizer's files)"
            raise CheckpointError(
                f"{self.name} has no {lacks}, so it cannot chat; logits() and generate_ids() work"
            )
        if options.adapter is not None:
            raise UsageError(
                f"adapter {options.adapter!r}: the transformers engine runs no adapters; merge it "
                "into the model first"
            )
        return self._written(messages, renderer, options)

    def _tokens(self) -> Tokenizer:
        if self.tokenizer is None:
            raise CheckpointError(f"{self.name} has no tokenizer")
        return self.tokenizer

    @property
    def context_length(self) -> int:
        """How many tokens a prompt and its answer may have together."""
        return self._context_length

    def _decode(self, rows: Iterable[Row | None], *, slots: int) -> Generator[Column, None, None]:
        """Decode rows, ``slots`` at a time; yield once per step."""
        # Without a cache to keep, or masks to hide padding, rows cannot run side by side.
        most = slots if {"past_key_values", "attention_mask"} <= self._takes else 1
        group: list[Row] = []
        for row in rows:
            if row is not None:
                group.append(row)
            if row is None or len(group) >= most:
                most = yield from self._group(group, most)
                yield ()
                group = []
        yield from self._group(group, most)

    def _group(self, rows: list[Row], most: int) -> Generator[Column, None, int]:
        """Decode rows to their ends, fewer at a time where there is no memory for all of them.

        :param most: rows that run side by side.
        :return: the same, until memory ran out.
        """
        yield from _side_by_side(self, rows)
        going = [row for row in rows if row.finish is None]
        if going and len(rows) == 1:
            rows[0].fail(OutOfMemoryError(_NO_ROOM.format(tokens=rows[0].length + 1)))
            yield (rows[0],)
        elif going:
            most = max(1, len(going) // 2)
            log.warning("memory ran out; %d rows run side by side from now on", most)
            while going:
                group, going = going[:most], going[most:]
                most = yield from self._group(group, most)
        return most


_NO_ROOM = (
    "memory ran out at a row of {tokens} tokens, running alone; shorten it, free memory or load "
    "the model in half precision"
)


def _side_by_side(owner: TransformersModel, rows: list[Row]) -> Generator[Column, None, None]:
    """Decode rows until they ended, or memory ran out; what they had of it is free then."""
    side = SideBySide(owner, rows)
    while True:
        try:
            with torch.inference_mode():
                side.leave()
                if not side.rows:
                    return
                pick(side.rows, side.scores())
        except (RuntimeError, MemoryError) as error:
            if not ran_out(error):
                raise
            return
        yield tuple(side.rows)


class SideBySide:
    """Rows that are decoded together, padded on the left, over the model's own cache.

    :param rows: also such as have some of their tokens already.
    """

    def __init__(self, owner: TransformersModel, rows: list[Row]) -> None:
        self.rows = rows
        self._owner = owner
        self._past: Any = None
        known = [[*row.prompt, *row.new] for row in rows]
        length = max(map(len, known), default=0)
        device = owner.model.device
        self._ids = torch.zeros(len(rows), length, dtype=torch.long, device=device)
        self._mask = torch.zeros_like(self._ids)
        for at, ids in enumerate(known):
            self._ids[at, length - len(ids) :] = torch.tensor(ids, device=device)
            self._mask[at, length - len(ids) :] = 1
        self._begun = False

    def leave(self) -> None:
        """Drop the rows that ended."""
        going = [at for at, row in enumerate(self.rows) if row.finish is None]
        if len(going) == len(self.rows):
            return
        self.rows = [self.rows[at] for at in going]
        index = torch.tensor(going, dtype=torch.long, device=self._ids.device)
        self._ids, self._mask = self._ids[index], self._mask[index]
        if going and self._past is not None:
            self._past.batch_select_indices(index)

    def scores(self) -> Tensor:
        """Return the next scores, float32 (B, V)."""
        if self._begun:
            self._extend()
        self._begun = True
        given = {
            "attention_mask": self._mask,
            "position_ids": _positions(self._mask)[:, -self._ids.shape[1] :],
            "past_key_values": self._past,
            "use_cache": True,
            "logits_to_keep": 1,
        }
        out = self._owner.model(input_ids=self._ids, **self._owner._known(given))
        self._past = getattr(out, "past_key_values", None)
        return cast(Tensor, out.logits[:, -1].float())

    def _extend(self) -> None:
        """Make the rows' newest tokens the next input."""
        new = torch.tensor([[row.new[-1]] for row in self.rows], device=self._ids.device)
        self._mask = torch.cat((self._mask, torch.ones_like(new)), dim=1)
        self._ids = new if self._past is not None else torch.cat((self._ids, new), dim=1)


def _positions(mask: Tensor) -> Tensor:
    """Return the place of each real token in its row, (B, S); 0 for padding."""
    return (mask.cumsum(-1) - 1).clamp(min=0)


def _context_length(config: Any, tokenizer: Wrapped | None) -> int:  # noqa: ANN401
    """Return how many tokens prompt and answer may have together."""
    text = config.get_text_config()
    for name in ("max_position_embeddings", "n_positions", "max_seq_len", "seq_length", "n_ctx"):
        length = getattr(text, name, None)
        if isinstance(length, int) and length > 0:
            return length
    said = getattr(tokenizer and tokenizer.inner, "model_max_length", None)
    return said if isinstance(said, int) and said < _ABSURD else _UNKNOWN


_ABSURD = 1 << 30
_UNKNOWN = 2_048


def load_transformers(
    path: Path,
    *,
    device: str | None = None,
    dtype: str | None = None,
    name: str | None = None,
    languages: frozenset[str] | None = None,
    **others: object,
) -> TransformersModel:
    """Load the model in a folder through transformers.

    :param device: as torch names it; None: the first CUDA device, else the processor.
    :param dtype: ``"float32"``, ``"bfloat16"`` or ``"float16"``; None: as stored, on a processor
        float32 where memory allows.
    :param name: what the model calls itself; None: the folder's name.
    :param languages: ISO 639-1 codes it answers in.
    :param others: options of the local engine, which are refused if they are set.
    :raises UsageError: if an option is none of this engine's.
    :raises MissingExtraError: if transformers is not installed.
    :raises CheckpointError: if transformers cannot load the folder, or only with code in it.
    """
    _refuse_set(others)
    folder = Path(path)
    model, tokenizer = opened(folder, device=device, dtype=dtype)
    wrapped = Wrapped(tokenizer) if tokenizer is not None else None
    return TransformersModel.open(
        model, wrapped, folder, name=name or folder.name, languages=languages
    )


def _refuse_set(others: Mapping[str, object]) -> None:
    """Refuse options of the local engine rather than ignore them."""
    for option in ("quantize", "adapter", "adapter_alpha", "family", "max_memory"):
        if others.get(option) is not None:
            raise UsageError(
                f"the transformers engine takes no {option} (got {others[option]!r}); leave it out"
            )


def _renderer(
    folder: Path, tokenizer: Wrapped | None, system: str, languages: frozenset[str] | None
) -> Renderer | None:
    """Return what writes conversations as the folder's template has it; None where it has none."""
    chat_format = template_format(folder, tokenizer) if tokenizer is not None else None
    if tokenizer is None or chat_format is None:
        return None
    return Renderer(tokenizer, chat_format, system, languages)
