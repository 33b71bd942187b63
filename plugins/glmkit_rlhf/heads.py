"""A head that gives one number for a place of a conversation: what an answer, or a state, is worth.

It reads the hidden states behind the model's last norm, which every generation has, and lies in
files of its own beside the adapter or the model: ``reward_head.safetensors`` and
``reward_head.json``.

Letters: N places, H hidden size.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from glmkit import CheckpointError

if TYPE_CHECKING:
    from glmkit.training.below import CausalModel
    from glmkit.training.config import TrainConfig
    from glmkit.training.optimizers import Group
    from glmkit.training.tuning import Tuning

REWARD, VALUE = "reward_head", "value_head"
"""What heads are called, in a model and in files."""


class ScalarHead(nn.Module):
    """A linear layer with one output, in single precision whatever the model lies in; at first 0.

    :param size: H.
    :param pooling: what of a conversation it reads; see :func:`pooled`.
    """

    def __init__(self, size: int, *, pooling: str = "last") -> None:
        super().__init__()
        self.pooling = pooling
        self.weight = nn.Parameter(torch.zeros(size))
        self.bias = nn.Parameter(torch.zeros(()))

    def forward(self, hidden: Tensor) -> Tensor:
        """Return (N,) for hidden states (N, H), which are normed; autocast rounds nothing here."""
        numbers = hidden.to(torch.promote_types(hidden.dtype, self.weight.dtype))
        return (numbers * self.weight).sum(-1) + self.bias


def put_head(model: CausalModel, name: str = REWARD) -> ScalarHead:
    """Give a model a new head, which is trained, and return it."""
    head = ScalarHead(model.config.hidden_size).to(model.like.device)
    setattr(model, name, head)
    return head


def head_of(model: nn.Module, name: str = REWARD) -> ScalarHead:
    """Return the head that a model was given.

    :raises CheckpointError: if it has none.
    """
    head = getattr(model, name, None)
    if not isinstance(head, ScalarHead):
        raise CheckpointError(f"the model has no {name}; put_head() gives it one")
    return head


def worth(model: CausalModel, hidden: Tensor, name: str = REWARD) -> Tensor:
    """Return what a head says, (N,), of hidden states (N, H) that are not normed yet."""
    found: Tensor = head_of(model, name)(model.norm(hidden))
    return found


def pooled(hidden: Tensor, lengths: Sequence[int], sizes: Sequence[int], pooling: str) -> Tensor:
    """Return what a head reads of conversations, (S, H).

    :param hidden: (N, H), one conversation behind another, normed.
    :param lengths: tokens of each, S of them.
    :param sizes: tokens of their answers, at their ends.
    :param pooling: ``last``: the last token; ``mean``: the mean over the answer's tokens.
    """
    parts = torch.split(hidden, list(lengths))
    if pooling == "last":
        return torch.stack([each[-1] for each in parts])
    exact = torch.promote_types(hidden.dtype, torch.float32)
    ends = zip(parts, sizes, strict=True)
    return torch.stack([each[len(each) - size :].to(exact).mean(0) for each, size in ends])


def save_head(
    state: Mapping[str, Tensor], folder: Path, name: str = REWARD, *, pooling: str = "last"
) -> None:
    """Write a head.

    :param state: ``weight`` and ``bias``.
    :param pooling: what it reads; see :func:`pooled`.
    """
    from safetensors.torch import save_file

    tensors = {leaf: each.float().contiguous() for leaf, each in state.items()}
    save_file(tensors, folder / f"{name}.safetensors", metadata={"format": "pt"})
    about = {
        "format": 1,
        "hidden_size": len(state["weight"]),
        "pooling": pooling,
    }
    (folder / f"{name}.json").write_text(json.dumps(about, indent=2) + "\n", encoding="utf-8")


def has_head(folder: Path, name: str = REWARD) -> bool:
    """Tell whether a folder holds a head, whole or not."""
    return any((folder / f"{name}{ending}").is_file() for ending in (".json", ".safetensors"))


def load_head(folder: Path, size: int | None = None, name: str = REWARD) -> ScalarHead:
    """Read a head.

    :param size: the hidden size of the model that it is for; None: whatever it has.
    :raises CheckpointError: if it is missing, damaged, or for a model of another size.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    file = folder / f"{name}.safetensors"
    if not has_head(folder, name):
        raise CheckpointError(
            f"{folder} holds no {file.name}: it is no run of the recipe reward "
            "(glmkit finetune reward)"
        )
    try:
        about: Any = json.loads((folder / f"{name}.json").read_text(encoding="utf-8"))
        state = load_file(file)
        head = ScalarHead(int(about["hidden_size"]), pooling=str(about["pooling"]))
        head.load_state_dict(state)
    except (OSError, ValueError, TypeError, KeyError, RuntimeError, SafetensorError) as error:
        raise CheckpointError(f"{file} is damaged or not whole ({error}); copy it again") from error
    if size is not None and len(head.weight) != size:
        raise CheckpointError(
            f"{file} is for a model of hidden size {len(head.weight)}, and this one has {size}: "
            "name the model that the run was trained on"
        )
    return head


class Headed:
    """A way of training a model, with a head beside it.

    :param inner: what is trained of the model itself.
    :param rate: the learning rate of the head; None: as the rest's.
    :param pooling: what the head reads; see :func:`pooled`.
    """

    def __init__(
        self,
        inner: Tuning,
        name: str = REWARD,
        *,
        rate: float | None = None,
        pooling: str = "last",
    ) -> None:
        self.inner, self.name, self.rate, self.pooling = inner, name, rate, pooling
        self.kind, self.lossless = inner.kind, inner.lossless
        self.forecast = inner.forecast
        self.whole = bool(getattr(inner, "whole", False))
        self._size = 0

    @property
    def lies(self) -> str | None:
        """How the base's weights lie rounded, where this can be trained beside such."""
        found: str | None = getattr(self.inner, "lies", None)
        return found

    def dress(self, model: CausalModel) -> None:
        """Freeze and add as the inner tuning does, and put the head on."""
        self.inner.dress(model)
        put_head(model, self.name).pooling = self.pooling
        self._size = model.config.hidden_size

    def groups(self, model: CausalModel, config: TrainConfig) -> list[Group]:
        """Return the inner tuning's groups, and the head apart where it has a rate of its own."""
        head = list(head_of(model, self.name).parameters())
        own = {id(each) for each in head}
        groups = self.inner.groups(model, config)
        for group in groups:
            group["params"] = [each for each in group["params"] if id(each) not in own]
        rate = {} if self.rate is None else {"lr": self.rate}
        return [each for each in groups if each["params"]] + [{"params": head, **rate}]

    def save(self, state: dict[str, Tensor], folder: Path) -> None:
        """Write what the inner tuning writes, and the head."""
        start = f"{self.name}."
        head = {name.removeprefix(start): v for name, v in state.items() if name.startswith(start)}
        self.inner.save({n: v for n, v in state.items() if not n.startswith(start)}, folder)
        save_head(head, folder, self.name, pooling=self.pooling)

    def load(self, folder: Path) -> dict[str, Tensor]:
        """Return what was written; of an adapter without a head, a new one.

        :raises CheckpointError: if it is damaged, or for another base.
        """
        state = self.inner.load(folder)
        there = has_head(folder, self.name)
        head = load_head(folder, name=self.name) if there else ScalarHead(self._size)
        return state | {f"{self.name}.{leaf}": each for leaf, each in head.state_dict().items()}


class HeadOnly:
    """Train nothing of the model: what is put on it learns alone.

    :param base: the folder of the model.
    """

    kind = "lora"  # to a forecast it is one of the smallest
    lossless = True
    forecast: Mapping[str, Any] = MappingProxyType({"rank": 1})

    def __init__(self, base: Path) -> None:
        self.base = base

    @property
    def lies(self) -> str | None:
        """How the base's weights lie rounded."""
        from glmkit.training.tunings.lora import lying

        return lying(self.base)

    def dress(self, model: CausalModel) -> None:
        """Freeze all of it."""
        model.requires_grad_(False)

    def groups(self, model: CausalModel, config: TrainConfig) -> list[Group]:
        """Return nothing of the model."""
        return []

    def save(self, state: dict[str, Tensor], folder: Path) -> None:
        """Write on which model it was trained."""
        from glmkit.training.below import Fingerprint

        Fingerprint.of(self.base).write(folder)

    def load(self, folder: Path) -> dict[str, Tensor]:
        """Return nothing: there is only what is put on."""
        return {}
