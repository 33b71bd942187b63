"""DPO: what the model finds likelier than it did when the run began; see `losses.py`.

What the first model says of a pair does not change: it is worked out when the pair is first seen,
and remembered, two numbers a pair. Losses that compare with no first model have none.

Letters: S pairs.
"""

from __future__ import annotations

from collections.abc import Generator
from typing import TYPE_CHECKING, cast

import torch
from torch import Tensor, nn

from glmkit.training.learner import Loss, computing_in

from .dpo import FREE, DpoKind, FreeKind
from .initial import AtFirst, Initial
from .losses import Logs, dpo_losses, free_losses
from .pairs import PairBatch, taken_in
from .rows import answer_log_probs

if TYPE_CHECKING:
    from glmkit import StepLog
    from glmkit.training.below import CausalModel, LocalModel
    from glmkit.training.config import TrainConfig
    from glmkit.training.intake import Intake
    from glmkit.training.tuning import Tuning

    from .dpo import DpoConfig


class DpoTask:
    """Learn to find the better answers likelier."""

    drawn: tuple[str, ...] = ("loss", "eval_loss", "accuracy", "eval_accuracy", "margin")
    unit = "loss of a pair, share of pairs told right, margin"
    per_token = False

    def __init__(self, config: DpoConfig, tuning: Tuning) -> None:
        self.config, self.tuning = config, tuning

    def taken_in(self, config: TrainConfig, world: int) -> Generator[StepLog, None, Intake]:
        """Read and tokenise preferences."""
        return (yield from taken_in(self.config, world))

    def learner(
        self, config: TrainConfig, local: LocalModel, computing: torch.dtype | None
    ) -> DpoLearner:
        """Return the model's loss of pairs; the model is as it is when the run begins."""
        initial = None
        if self.config.loss not in FREE:
            initial = Initial.of(local.model, self.tuning, self.config.init_adapter)
        return DpoLearner(local.model, initial, self.config, computing=computing)


class DpoLearner(nn.Module):
    """A model asked for its loss of pairs.

    :param initial: lets it compute as it did at first; None: nothing is compared with that.
    :param computing: see :class:`glmkit.training.learner.Learner`.
    """

    def __init__(
        self,
        model: CausalModel,
        initial: Initial | None,
        config: DpoConfig,
        *,
        computing: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        self.model, self.config, self.computing = model, config, computing
        self._at_first = None if initial is None else AtFirst(model, initial)

    def forward(self, batch: PairBatch) -> Loss:
        """Return the loss, each pair times its share, and what it comes from."""
        sizes = _sizes(batch)
        with computing_in(self.computing, batch.ids.device):
            reference = None if self._at_first is None else _of_pairs(batch, self._at_first)
            found = answer_log_probs(self.model, batch)
        policy = Logs(found[::2], found[1::2])
        lost = self._lost(policy, reference, sizes)
        if self.config.sft:
            lost = lost - self.config.sft * policy.chosen / sizes.chosen
        shares = batch.shares.to(policy.chosen)
        likely = policy.over(sizes) if reference is None else policy.than(reference)
        told = _figures(policy, likely, self.config.beta)
        figures = {name: (each.detach() * shares).sum() for name, each in told.items()}
        return Loss((lost * shares).sum(), shares.sum(), figures)

    def _lost(self, policy: Logs, reference: Logs | None, sizes: Logs) -> Tensor:
        """Return the loss of each pair, (S,)."""
        config, beta = self.config, self.config.beta
        if reference is None:
            return free_losses(
                policy, sizes, cast(FreeKind, config.loss), beta=beta, gamma=config.gamma
            )
        kind, smoothing = cast(DpoKind, config.loss), config.smoothing
        return dpo_losses(policy, reference, sizes, kind, beta=beta, smoothing=smoothing)


def _of_pairs(batch: PairBatch, at_first: AtFirst) -> Logs:
    """Return what the first model says."""
    rows = [batch.alone(at) for at in range(len(batch.keys))]
    return Logs(*at_first(rows, batch.keys).unbind(-1))


def _figures(policy: Logs, likely: Logs, beta: float) -> dict[str, Tensor]:
    """Return the implicit rewards of answers (Rafailov et al., section 4) and their margin.

    :param likely: log-ratios to the first model; where there is none, means over tokens.
    """
    chosen, rejected = (beta * each for each in likely)
    return {
        "accuracy": (chosen > rejected).to(chosen),
        "margin": chosen - rejected,
        "chosen_reward": chosen,
        "rejected_reward": rejected,
        "chosen_log_prob": policy.chosen,
        "rejected_log_prob": policy.rejected,
    }


def _sizes(batch: PairBatch) -> Logs:
    counts = torch.tensor(batch.sizes, device=batch.ids.device)
    return Logs(counts[::2], counts[1::2])
