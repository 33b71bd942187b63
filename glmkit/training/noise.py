"""NEFTune: noise on the embeddings while training, which makes answers fuller.

Its size depends on the length of an example, as in the paper; here that is the example's own, and
not that of a padded batch.

Shapes: N tokens of a row, H hidden size.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from .batches import Batch
from .learner import Learner


def add_noise(learner: Learner, alpha: float) -> None:
    """Let a learner add uniform noise up to ``alpha / sqrt(tokens x H)`` while it trains.

    :param alpha: 5 to 15, as a rule.
    """
    lengths: list[int] = []

    def before(module: nn.Module, given: tuple[Batch, ...]) -> None:
        lengths[:] = given[0].lengths

    def after(module: nn.Module, given: object, out: Tensor) -> Tensor:
        if not module.training:
            return out
        return out + torch.empty_like(out).uniform_(-1, 1) * _most(lengths, out, alpha)

    learner.register_forward_pre_hook(before)
    learner.model.get_submodule(learner.model.EMBEDDING).register_forward_hook(after)


def _most(lengths: Sequence[int], out: Tensor, alpha: float) -> Tensor:
    """Return the greatest noise of each token of (1, N, H): (N, 1)."""
    sizes = torch.tensor(lengths, device=out.device)
    each = alpha * (sizes * out.shape[-1]).float().rsqrt()
    return each.repeat_interleave(sizes)[:, None].to(out.dtype)
