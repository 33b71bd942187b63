"""What reward models and DPO minimise for each pair of answers, and KTO for each answer.

Reward models: Bradley and Terry (1952), as in Ouyang et al. (InstructGPT, 2022, arXiv:2203.02155);
margins: Touvron et al. (Llama 2, 2023, arXiv:2307.09288); centering: Eisenstein et al. (2023,
arXiv:2312.09244). DPO: Rafailov et al. (2023, arXiv:2305.18290); ``hinge``: Zhao et al. (SLiC-HF,
2023, arXiv:2305.10425); ``ipo``: Azar et al. (2023, arXiv:2310.12036); label smoothing: Mitchell
(2023); ``robust``: Chowdhury et al. (2024, arXiv:2403.00409); the SFT term: Pang et al. (RPO, 2024,
arXiv:2404.19733). Without a first model: ``simpo``: Meng et al. (2024, arXiv:2405.14734);
``orpo``: Hong et al. (2024, arXiv:2403.07691). KTO: Ethayarajh et al. (2024, arXiv:2402.01306);
``apo_zero_unpaired``: D'Oosterlinck et al. (APO, 2024, arXiv:2408.06266). The names are TRL's.

Letters: S pairs, or answers with a verdict.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from .dpo import DpoKind, FreeKind

NORMALISED = ("sigmoid_norm", "ipo")
"""Those that compare the means over an answer's tokens, not the sums."""


def bradley_terry(
    chosen: Tensor, rejected: Tensor, margins: Tensor | None = None, *, centering: float = 0.0
) -> Tensor:
    """Return ``-log sigmoid(r_c - r_r - m) + c (r_c + r_r)^2`` of each pair, (S,).

    :param chosen: (S,), what the better answers are worth.
    :param rejected: (S,).
    :param margins: (S,), how much better they should be; None: 0.
    :param centering: how much the mean of both is drawn to 0.
    """
    difference = chosen - rejected if margins is None else chosen - rejected - margins
    lost = -F.logsigmoid(difference)
    return lost + centering * (chosen + rejected) ** 2 if centering else lost


class Logs(NamedTuple):
    """Log-probabilities of the better and the worse answers, each (S,), in nats."""

    chosen: Tensor
    rejected: Tensor

    def over(self, sizes: Logs) -> Logs:
        """Return means over the tokens of answers; ``sizes`` says how many they have."""
        return Logs(self.chosen / sizes.chosen, self.rejected / sizes.rejected)

    def than(self, other: Logs) -> Logs:
        """Return log-ratios to what another model says."""
        return Logs(self.chosen - other.chosen, self.rejected - other.rejected)


def dpo_losses(
    policy: Logs,
    reference: Logs,
    sizes: Logs,
    kind: DpoKind = "sigmoid",
    *,
    beta: float = 0.1,
    smoothing: float = 0.0,
) -> Tensor:
    """Return the loss of each pair, (S,).

    With ``d`` the log-ratio of the chosen answer to the reference minus that of the rejected one:
    ``sigmoid`` is ``-(1 - e) log sigmoid(b d) - e log sigmoid(-b d)``, ``hinge`` is
    ``max(0, 1 - b d)``, ``ipo_sum`` is ``(d - 1 / 2b)^2``, ``robust`` is
    ``(-(1 - e) log sigmoid(b d) + e log sigmoid(-b d)) / (1 - 2e)``. In ``sigmoid_norm`` and
    ``ipo`` (as TRL and LLaMA-Factory have it), log-probabilities are means over tokens.

    :param sizes: tokens of the answers.
    :param smoothing: e, the share of pairs that are labelled the wrong way round.
    """
    if kind in NORMALISED:
        policy, reference = policy.over(sizes), reference.over(sizes)
    likelier = policy.than(reference)
    ratio = likelier.chosen - likelier.rejected
    if kind in ("ipo", "ipo_sum"):
        return (ratio - 1 / (2 * beta)) ** 2
    if kind == "hinge":
        return torch.relu(1 - beta * ratio)
    right, wrong = F.logsigmoid(beta * ratio), F.logsigmoid(-beta * ratio)
    if kind == "robust":
        return (-(1 - smoothing) * right + smoothing * wrong) / (1 - 2 * smoothing)
    return -(1 - smoothing) * right - smoothing * wrong


def free_losses(
    policy: Logs, sizes: Logs, kind: FreeKind, *, beta: float = 0.1, gamma: float = 0.5
) -> Tensor:
    """Return the loss of each pair, (S,), where there is no first model.

    With ``l`` the mean log-probability of an answer's tokens, ``simpo`` is
    ``-log sigmoid(b (l_c - l_r) - g)``, and ``orpo`` is ``-l_c - b log sigmoid(o_c - o_r)`` with
    the log-odds ``o = l - log(1 - e^l)``.

    :param sizes: tokens of the answers.
    :param gamma: g, by how much the better answer should be likelier (``simpo``).
    """
    means = policy.over(sizes)
    if kind == "simpo":
        return -F.logsigmoid(beta * (means.chosen - means.rejected) - gamma)
    chosen, rejected = map(_log_odds, means)
    return -means.chosen - beta * F.logsigmoid(chosen - rejected)


def kto_losses(
    policy: Tensor,
    reference: Tensor,
    good: Tensor,
    baseline: float,
    *,
    beta: float = 0.1,
    desirable: float = 1.0,
    undesirable: float = 1.0,
) -> Tensor:
    """Return the loss of each answer, (S,) (KTO, equations 7 and 8).

    With ``d`` the log-ratio of an answer to the reference and ``z`` the baseline, it is
    ``w (1 - sigmoid(b (d - z)))`` of a good one and ``w (1 - sigmoid(b (z - d)))`` of another;
    ``apo_zero_unpaired`` is the same with ``z = 0``.

    :param policy: (S,), log-probabilities.
    :param reference: (S,).
    :param good: bool (S,).
    :param baseline: the divergence from the first model, in nats an answer, 0 or more.
    :param desirable: the weight w of good answers; ``undesirable``: of the others.
    """
    above = beta * (policy - reference - baseline)
    lost = 1 - torch.sigmoid(torch.where(good, above, -above))
    return lost * torch.where(good, desirable, undesirable).to(lost)


def _log_odds(logs: Tensor) -> Tensor:
    """Return the log-odds of log-probabilities; of a certainty, a finite number."""
    below = logs.clamp(max=-torch.finfo(logs.dtype).eps)
    return below - torch.log(-torch.expm1(below))
