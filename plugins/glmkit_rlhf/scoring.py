"""A reward model that has been trained, asked what answers are worth."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from glmkit import CheckpointError, DataError, Message, UsageError
from glmkit.dataset.samples import Sample
from glmkit.training.attention import placed
from glmkit.training.encoding import SampleEncoder

from .heads import REWARD, head_of, load_head, pooled

if TYPE_CHECKING:
    from glmkit import Glmkit, MessageLike
    from glmkit.training.below import LocalModel
    from glmkit.training.examples import Example

_AT_ONCE = 4096
"""Tokens that are scored together."""


class RewardModel:
    """Says what answers are worth; higher is better. The numbers of different runs compare with
    nothing.

    :param local: a model that wears what the run trained, with the run's head on it.
    :param encoder: writes conversations as the run did.
    """

    def __init__(self, local: LocalModel, encoder: SampleEncoder, *, name: str = "reward") -> None:
        self.local, self.encoder, self.name = local, encoder, name

    @classmethod
    def load(
        cls,
        folder: Path | str,
        app: Glmkit | None = None,
        *,
        base: str | None = None,
        device: str | None = None,
        dtype: str | None = None,
        quantize: str | None = None,
    ) -> RewardModel:
        """Load the result of ``glmkit finetune reward``.

        :param folder: the run, or one of its checkpoints.
        :param app: finds models by name; None: one with the user's settings.
        :param base: the model that it was trained on: a name, a hub id or a folder; None: the one
            that the run recorded. What a full run trained is a whole model and needs none.
        :raises CheckpointError: if it is no such run, damaged, or for another model.
        """
        from glmkit.training.below import load_local

        folder = Path(folder).expanduser()
        head = load_head(folder)
        place, told = _place(folder, app, base)
        family = told.get("family")
        local = load_local(place, device=device, dtype=dtype, quantize=quantize, family=family)
        if len(head.weight) != local.config.hidden_size:
            load_head(folder, local.config.hidden_size)
        if (folder / "adapter_config.json").is_file():
            local.load_adapter(folder, "reward")
        setattr(local.model, REWARD, head.to(local.model.like.device))
        return cls(local, _reader(place, told), name=folder.absolute().name)

    def score(self, conversations: Sequence[Sequence[MessageLike]]) -> list[float]:
        """Return what the last answer of each conversation is worth.

        :param conversations: each ends with what the assistant says.
        :raises DataError: if one does not, or its question leaves no room for an answer within the
            ``max_length`` of the run.
        """
        return [each for part in self.scores(conversations) for each in part]

    def score_readable(self, conversations: Sequence[Sequence[MessageLike]]) -> list[float | str]:
        """Return the same; in the place of a conversation that cannot be scored, why."""
        said: dict[int, str] = {}
        rows: list[Example] = []
        for at, each in enumerate(conversations):
            try:
                rows.append(self.read(alone(each)))
            except DataError as error:
                said[at] = str(error)
        found = (each for part in self.asked(rows) for each in part)
        return [said[at] if at in said else next(found) for at in range(len(conversations))]

    def scores(self, conversations: Iterable[Sequence[MessageLike]]) -> Iterator[list[float]]:
        """Yield the same, some at a time, as they come."""
        return self.asked(self.read(alone(each)) for each in conversations)

    def asked(self, rows: Iterable[Example]) -> Iterator[list[float]]:
        """Yield what answers that are read already are worth, some at a time, as they come."""
        some: list[Example] = []
        for row in rows:
            if some and sum(map(len, some)) + len(row) > _AT_ONCE:
                yield self._scored(some)
                some = []
            some.append(row)
        if some:
            yield self._scored(some)

    def read(self, sample: Sample) -> Example:
        """Return an answer with what was said before it as the model reads them.

        :param sample: its last answer is the one that counts.
        :raises DataError: if its question leaves no room for an answer; says why.
        """
        (found,) = self.encoder.encode([sample])
        if not found.rows:
            raise DataError(f"a conversation cannot be scored: {found.reason}")
        return found.rows[-1]

    @torch.inference_mode()
    def _scored(self, rows: Sequence[Example]) -> list[float]:
        model, head = self.local.model, head_of(self.local.model)
        ids = torch.cat([torch.from_numpy(each.ids).long() for each in rows])
        ids = ids.to(model.like.device)
        lengths = [len(each) for each in rows]
        sizes = [int((each.weights > 0).sum()) for each in rows]
        positions, blocks = placed(model, ids, lengths)
        hidden = model.norm(model.hidden(ids[None], positions, past=blocks)[0])
        found: list[float] = head(pooled(hidden, lengths, sizes, head.pooling)).tolist()
        return found


def reader_of(folder: Path, app: Glmkit | None = None) -> SampleEncoder:
    """Return what writes conversations as a run did; no weights are read.

    :param folder: the run, or one of its checkpoints.
    :raises CheckpointError: if its model has no vocabulary that glmkit knows.
    """
    folder = folder.expanduser()
    return _reader(*_place(folder, app, None))


def _reader(place: Path, told: Mapping[str, Any]) -> SampleEncoder:
    return SampleEncoder.open(
        place,
        family=told.get("family"),
        system=told.get("system"),
        max_length=int(told.get("max_length", 1024)),
    )


def _place(folder: Path, app: Glmkit | None, base: str | None) -> tuple[Path, dict[str, Any]]:
    """Return where the model of a run lies, and the run's settings."""
    from glmkit import Glmkit

    told = _recorded(folder)
    whole = (folder / "config.json").is_file() and told.get("tuning", "full") == "full"
    place = folder if whole else _base(folder, base or told.get("model"), app or Glmkit())
    return place, told


def alone(conversation: Sequence[MessageLike]) -> Sample:
    """Return a conversation of which only the last answer counts."""
    messages = tuple(Message.of(each) for each in conversation)
    return Sample(messages, (*(0.0 for _ in messages[1:]), 1.0))


def _recorded(folder: Path) -> dict[str, Any]:
    """Return the settings of the run that a folder holds, or that it is a checkpoint of."""
    for place in (folder, folder.parent):
        file = place / "run.json"
        if file.is_file():
            try:
                found: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))["config"]
            except (OSError, ValueError, KeyError, TypeError) as error:
                raise CheckpointError(f"{file} is damaged ({error})") from error
            return found
    return {}


def _base(folder: Path, name: str | None, app: Glmkit) -> Path:
    if name is None:
        raise UsageError(f"{folder} does not say on which model it was trained; name it: --model")
    return app.locate_model(None if name == "default" else name).path
