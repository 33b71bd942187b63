"""Whether a step fits: one is gone through with tensors that have shapes and no numbers."""

from __future__ import annotations

import weakref
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from glmkit import OutOfMemoryError
from glmkit.training.below import memory_of, readable
from glmkit.training.learner import computing_in

from .config import DreamboothConfig

if TYPE_CHECKING:
    from .learner import PictureLearner

_GAPS = 1.1
"""What a step takes is this much more than its tensors: there are gaps between them."""
_ASIDE = 256 << 20
"""Bytes that libraries below torch set aside for products of large nets: 200 and 230 MB were
measured beside steps of 340 and 90 MB. Of a smaller step, at most three times its own."""
_OPTIMIZER = 3
"""A gradient and two means in single precision for each number that is learnt."""


class LiveBytes(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Counts the bytes of tensors that are alive, those made inside only."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.now = 0
        """Bytes alive."""
        self.peak = 0
        """Most that were alive at once."""
        self._known: set[int] = set()

    def __torch_dispatch__(  # noqa: D105
        self,
        func: Any,  # noqa: ANN401
        types: Any,  # noqa: ANN401
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:  # noqa: ANN401
        made = func(*args, **(kwargs or {}))
        if all(each.alias_info is not None for each in func._schema.returns):
            return made  # a view, or what it was called with: nothing new
        for each in tree_leaves(made):
            if isinstance(each, Tensor):
                self._take(each.untyped_storage())
        return made

    def _take(self, storage: torch.UntypedStorage) -> None:
        key, size = storage._cdata, storage.nbytes()
        if key in self._known:  # a view
            return
        self._known.add(key)
        self.now += size
        self.peak = max(self.peak, self.now)
        weakref.finalize(storage, self._drop, key, size)

    def _drop(self, key: int, size: int) -> None:
        self._known.discard(key)
        self.now -= size


def step_bytes(learner: PictureLearner, latents: tuple[int, int, int, int], device: str) -> int:
    """Return the most bytes that one step has alive at once, weights not among them.

    Nothing is computed and nothing of the learner changes.

    :param latents: of the pictures of a step: pictures, channels, height, width.
    """
    from torch._subclasses.fake_tensor import FakeTensorMode

    live, modes = LiveBytes(), {each: each.training for each in learner.modules()}
    learner.train()  # as a step is taken: with dropout, and with blocks worked out again
    with FakeTensorMode(allow_non_fake_inputs=True), live:
        noisy = torch.zeros(latents, device=device)
        shows = torch.zeros(latents[0], dtype=torch.int64, device=device)
        with computing_in(learner.computing, noisy.device):
            found = learner.model.unet(
                noisy, shows, encoder_hidden_states=learner.embedded()[shows]
            ).sample
        found.float().square().mean().backward()
    for module, training in modes.items():
        module.training = training
    for each in learner.parameters():
        each.grad = None
    return live.peak


def check(
    learner: PictureLearner, latents: tuple[int, int, int, int], config: DreamboothConfig
) -> str:
    """Return a line that says what a step takes.

    :raises OutOfMemoryError: if that is more than is free; names what helps.
    """
    device = next(learner.parameters()).device
    learnt = sum(each.numel() for each in learner.parameters() if each.requires_grad)
    peak = step_bytes(learner, latents, str(device))
    needed = int(_GAPS * peak) + min(_ASIDE, 3 * peak) + _OPTIMIZER * 4 * learnt
    free = memory_of(device)
    if needed <= free:
        return f"memory: a step takes about {readable(needed)} of {readable(free)} free on {device}"
    helps = [] if config.gradient_checkpointing else ["--gradient-checkpointing"]
    if config.batch_size > 1:
        helps.append(
            f"--batch-size 1 --gradient-accumulation "
            f"{config.batch_size * config.gradient_accumulation}"
        )
    helps += ["leaving out --train-text-encoder"] if config.train_text_encoder else []
    raise OutOfMemoryError(
        f"a step would take {readable(needed)}, and {readable(free)} are free on {device}; what "
        f"helps: {', or '.join([*helps, 'a smaller --resolution'])}; --no-memory-check tries all "
        "the same"
    )
