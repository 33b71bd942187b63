"""KTO: good answers become likelier than they were when the run began, the others less likely.

How far is told from how far the model has left its first self anyhow; see `verdicts.py` and
`losses.py`.

Letters: S answers.
"""

from __future__ import annotations

from collections.abc import Generator, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from glmkit.training.evaluating import judged
from glmkit.training.learner import Loss, computing_in

from .gathering import gathered
from .initial import AtFirst, Initial
from .losses import kto_losses
from .rows import answer_log_probs, joined
from .verdicts import Apart, HeldFeed, VerdictBatch, VerdictFeed, Verdicts, swapped, taken_in

if TYPE_CHECKING:
    from glmkit import StepLog
    from glmkit.training.below import CausalModel, LocalModel
    from glmkit.training.config import TrainConfig
    from glmkit.training.intake import Intake
    from glmkit.training.tuning import Tuning

    from .kto import KtoConfig


class KtoTask:
    """Learn to find good answers likelier, and the others less likely."""

    drawn: tuple[str, ...] = (
        *("loss", "eval_loss", "desirable_reward", "undesirable_reward"),
        *("eval_desirable_reward", "eval_undesirable_reward"),
    )
    unit = "loss of an answer, reward of an answer"
    per_token = False

    def __init__(self, config: KtoConfig, tuning: Tuning) -> None:
        self.config, self.tuning = config, tuning
        self._learnt: VerdictFeed | None = None
        self._held: HeldFeed | None = None

    def taken_in(self, config: TrainConfig, world: int) -> Generator[StepLog, None, Intake]:
        """Read and tokenise answers with a verdict."""
        intake = yield from taken_in(self.config, world)
        self._learnt = intake.feed if isinstance(intake.feed, VerdictFeed) else None
        self._held = intake.held if isinstance(intake.held, HeldFeed) else None
        return intake

    def learner(
        self, config: TrainConfig, local: LocalModel, computing: torch.dtype | None
    ) -> KtoLearner:
        """Return the model's loss of answers; the model is as it is when the run begins."""
        initial = Initial.of(local.model, self.tuning, self.config.init_adapter)
        at_first = AtFirst(local.model, initial)
        if self.config.loss == "kto":
            divergence = Divergence(
                local.model,
                at_first,
                computing,
                most=self.config.max_length,
                at_once=self.config.batch_size,
            )
            if self._learnt is not None:
                self._learnt.measure = divergence
            if self._held is not None:
                self._held.feed.measure = replace(divergence, again=True)
        return KtoLearner(local.model, at_first, self.config, computing=computing)


@dataclass(frozen=True)
class Divergence:
    """How far a model has left its first self, on answers behind the questions of others.

    :param most: tokens of a question with an answer.
    :param at_once: answers of a pass.
    :param again: the same answers will be asked for again, behind the same questions.
    """

    model: CausalModel
    at_first: AtFirst
    computing: torch.dtype | None
    most: int
    at_once: int
    again: bool = False

    def __call__(self, answers: Verdicts, places: Sequence[Apart]) -> float:
        """Return the mean log-ratio of answers to the first model, over all processes, in nats.

        It is 0 where it would be less, as a divergence is. All processes call it together.
        """
        total = 0.0
        with judged(self.model), computing_in(self.computing, self.model.like.device):
            for start in range(0, len(places), self.at_once):
                total += self._total(answers, places[start : start + self.at_once])
        totals, counts = zip(*gathered((total, len(places))), strict=True)
        return float(max(0.0, sum(totals) / sum(counts)))

    def _total(self, answers: Verdicts, places: Sequence[Apart]) -> float:
        """Return the sum of the log-ratios of some answers."""
        device = self.model.like.device
        pairs = [(answers[one], answers[other]) for one, other in places]
        rows = [swapped(one.said, other.said, self.most) for one, other in pairs]
        keys = [(one.key, other.key) if self.again else None for one, other in pairs]
        first = self.at_first([joined([each]).to(device) for each in rows], keys)[:, 0]
        now = answer_log_probs(self.model, joined(rows).to(device))
        return float((now - first).sum())


class KtoLearner(nn.Module):
    """A model asked for its loss of answers with a verdict.

    :param computing: see :class:`glmkit.training.learner.Learner`.
    """

    def __init__(
        self,
        model: CausalModel,
        at_first: AtFirst,
        config: KtoConfig,
        *,
        computing: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        self.model, self.config, self.computing = model, config, computing
        self._at_first = at_first

    def forward(self, batch: VerdictBatch) -> Loss:
        """Return the loss, each answer times its share, and what it comes from."""
        config = self.config
        rows = [batch.some(at, at + 1) for at in range(len(batch.keys))]
        with computing_in(self.computing, batch.ids.device):
            reference = self._at_first(rows, batch.keys)[:, 0]
            policy = answer_log_probs(self.model, batch)
        lost = kto_losses(
            policy,
            reference,
            batch.good,
            batch.baseline,
            beta=config.beta,
            desirable=config.desirable_weight,
            undesirable=config.undesirable_weight,
        )
        shares = batch.shares.to(lost)
        figures, parts = self._figures(batch, policy.detach(), (policy - reference).detach())
        return Loss((lost * shares).sum(), shares.sum(), figures, parts)

    def _figures(
        self, batch: VerdictBatch, policy: Tensor, likelier: Tensor
    ) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """Return the implicit rewards of both kinds of answers, and the weights they are of.

        :param likelier: (S,), log-ratios to the first model.
        """
        shares = batch.shares.to(likelier)
        right = torch.where(batch.good, likelier > batch.baseline, likelier < batch.baseline)
        figures = {"accuracy": (right.to(shares) * shares).sum()}
        if self.config.loss == "kto":
            figures["kl"] = batch.baseline * shares.sum()
        parts: dict[str, Tensor] = {}
        for name, which in (("desirable", batch.good), ("undesirable", ~batch.good)):
            own = shares * which
            figures[f"{name}_reward"] = (self.config.beta * likelier * own).sum()
            figures[f"{name}_log_prob"] = (policy * own).sum()
            parts |= {f"{name}_{kind}": own.sum() for kind in ("reward", "log_prob")}
        return figures, parts
