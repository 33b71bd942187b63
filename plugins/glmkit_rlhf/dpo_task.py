"""DPO: what the model finds likelier than it did when the run began; see `losses.py`.

What the first model says of a pair does not change: it is worked out when the pair is first seen,
and remembered, two numbers a pair. Each pair is asked for alone, so that a resumed run, which asks
again, gets the same numbers. Losses that compare with no first model have none.

Letters: S pairs, M tokens of all answers.
"""

from __future__ import annotations

from collections.abc import Generator
from typing import TYPE_CHECKING, cast

import torch
from torch import Tensor, nn

from glmkit.training.attention import placed
from glmkit.training.evaluating import judged
from glmkit.training.learner import Loss, computing_in
from glmkit.training.losses import token_log_probs

from .dpo import FREE, DpoKind, FreeKind
from .initial import Initial
from .losses import Logs, dpo_losses, free_losses
from .pairs import PairBatch, taken_in

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
        self._initial, self._known = initial, dict[int, tuple[float, float]]()

    def forward(self, batch: PairBatch) -> Loss:
        """Return the loss, each pair times its share, and what it comes from."""
        sizes = _sizes(batch)
        with computing_in(self.computing, batch.ids.device):
            reference = None if self._initial is None else self._reference(batch, self._initial)
            policy = self._logs(batch)
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

    def _logs(self, batch: PairBatch) -> Logs:
        """Return the log-probabilities of all answers, sums over their tokens."""
        positions, blocks = placed(self.model, batch.ids, batch.lengths)
        hidden = self.model.hidden(batch.ids[None], positions, past=blocks)[0]
        wanted = batch.learnt.nonzero().squeeze(-1)
        found = token_log_probs(
            self.model, hidden[(wanted - 1).to(hidden.device)], batch.ids[wanted]
        )
        sums = torch.stack([each.sum() for each in torch.split(found, list(batch.sizes))])
        return Logs(sums[::2], sums[1::2])

    def _reference(self, batch: PairBatch, initial: Initial) -> Logs:
        """Return what the first model says."""
        new = [at for at, key in enumerate(batch.keys) if key not in self._known]
        if new:
            with initial(), judged(self):
                for at in new:
                    found = self._logs(batch.alone(at))
                    self._known[batch.keys[at]] = float(found.chosen), float(found.rejected)
        both = torch.tensor([self._known[key] for key in batch.keys], dtype=torch.float64)
        exact = torch.promote_types(self.model.like.dtype, torch.float32)
        both = both.to(batch.ids.device, exact)
        return Logs(both[:, 0], both[:, 1])


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
