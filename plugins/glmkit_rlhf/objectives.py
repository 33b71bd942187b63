"""What PPO and GRPO minimise, as formulas over the tokens of answers, one answer behind another.

PPO: Schulman et al., "Proximal Policy Optimization Algorithms" (2017, arXiv:1707.06347), with the
rewards of Ziegler et al. (2019, arXiv:1909.08593) and Ouyang et al. (InstructGPT, 2022,
arXiv:2203.02155). GAE: Schulman et al. (2015, arXiv:1506.02438). GRPO: Shao et al. (DeepSeekMath,
2024, arXiv:2402.03300), Liu et al. (Dr. GRPO, 2025, arXiv:2503.20783), Yu et al. (DAPO, 2025,
arXiv:2503.14476), Zheng et al. (GSPO, 2025, arXiv:2507.18071). KL: Schulman, "Approximating KL
Divergence" (2020). The names of variants are those of TRL.

Letters: P prompts, G answers of each, S answers, M tokens of all answers; ``sizes`` says how many
tokens each answer has, and sums to M.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from .grpo import LossKind, Scale

_LEAST = 1e-4
"""Added to standard deviations of rewards, as in TRL."""
_LEAST_VARIANCE = 1e-8
_LEAST_LEFT = 0.1
"""Of a penalty that adapts itself, after one round."""


# ------------------------------------------------------------------------------------------ shared


def owners(sizes: Sequence[int], device: torch.device | None = None) -> Tensor:
    """Return which answer each token is of, int64 (M,)."""
    return torch.repeat_interleave(torch.tensor(list(sizes), device=device))


def per_answer(values: Tensor, sizes: Sequence[int]) -> Tensor:
    """Return the sum over each answer, (S,), of what its tokens have, (M,)."""
    sums = values.new_zeros(len(sizes))
    return sums.index_add(0, owners(sizes, values.device), values)


def k3(log_probs: Tensor, reference: Tensor) -> Tensor:
    """Return Schulman's third estimate of the KL divergence from a reference, per token.

    It is ``r - 1 - log r`` with r = reference / policy: unbiased, and never below 0.
    """
    log_ratio = reference - log_probs
    return log_ratio.exp() - log_ratio - 1


class Clipped(NamedTuple):
    """The clipped surrogate of PPO."""

    losses: Tensor
    """(M,)."""
    clipped: Tensor
    """(M,), bool: the step may not go further there."""


def surrogate(
    log_ratio: Tensor, advantages: Tensor, *, low: float = 0.2, high: float | None = None
) -> Clipped:
    """Return ``-min(r A, clip(r, 1 - low, 1 + high) A)`` of each token (PPO, equation 7).

    :param log_ratio: (M,), of the policy to the one that wrote the answers.
    :param advantages: (M,).
    :param high: None: as ``low``; larger in DAPO ("clip higher").
    """
    high = low if high is None else high
    ratio = log_ratio.exp()
    free, held = ratio * advantages, ratio.clamp(1 - low, 1 + high) * advantages
    return Clipped(-torch.minimum(free, held), held < free)


# -------------------------------------------------------------------------------------------- GRPO


def group_advantages(rewards: Tensor, scale: Scale = "group") -> Tensor:
    """Return how much better each answer is than the others to its prompt (GRPO, section 4.1.2).

    :param rewards: (P, G).
    :param scale: divide by the standard deviation of the ``group`` (GRPO), of the whole ``batch``,
        or by nothing, ``none`` (Dr. GRPO).
    :return: (P, G); 0 where all answers to a prompt are as good.
    """
    centred = rewards - rewards.mean(-1, keepdim=True)
    if scale == "none" or rewards.numel() < 2:
        return centred
    if scale == "batch":
        return centred / (rewards.std() + _LEAST)
    if rewards.shape[-1] < 2:
        return centred
    return centred / (rewards.std(-1, keepdim=True) + _LEAST)


def token_weights(
    sizes: Sequence[int], kind: LossKind, *, longest: int, tokens: int, answers: int
) -> Tensor:
    """Return how much each token counts, so that the sum over S answers divided by S is the loss.

    ``grpo``: the mean over answers of the mean over their tokens. ``bnpo`` and ``dapo``: the mean
    over all tokens of a step. ``dr_grpo``: the sum over all tokens, divided by answers and by the
    length that an answer may have.

    :param longest: tokens that an answer may have.
    :param tokens: of all answers of the step, of which these may be a part.
    :param answers: of the step.
    :return: (M,).
    """
    if kind == "grpo":
        shares = [1 / size if size else 0.0 for size in sizes]
        return torch.tensor(shares, dtype=torch.float64).repeat_interleave(torch.tensor(sizes))
    each = 1 / longest if kind == "dr_grpo" else answers / max(1, tokens)
    return torch.full((sum(sizes),), each, dtype=torch.float64)


def of_sequences(log_ratio: Tensor, log_probs: Tensor, sizes: Sequence[int]) -> Tensor:
    """Return one ratio for all tokens of an answer: the mean of theirs (GSPO, equation 7).

    Gradients reach each token by its own log-probability (GSPO-token, equation 14).
    """
    counts = torch.tensor(list(sizes), device=log_ratio.device).clamp(min=1)
    mean = (per_answer(log_ratio, sizes) / counts).detach()
    return mean[owners(sizes, log_ratio.device)] + log_probs - log_probs.detach()


# --------------------------------------------------------------------------------------------- PPO


def penalised(
    scores: Tensor, log_probs: Tensor, reference: Tensor, sizes: Sequence[int], penalty: float
) -> Tensor:
    """Return the rewards of tokens, (M,): what an answer is worth at its last token, and everywhere
    ``-penalty (log policy - log reference)`` (Ziegler et al., equation 2).

    :param scores: (S,).
    """
    rewards = -penalty * (log_probs - reference)
    ends = torch.tensor(list(sizes)).cumsum(0) - 1
    return rewards.index_add(0, ends.to(rewards.device), scores.to(rewards))


class Estimated(NamedTuple):
    """What generalised advantage estimation gives for each token."""

    advantages: Tensor
    returns: Tensor
    """What the value head should have said."""


def gae(
    rewards: Tensor, values: Tensor, sizes: Sequence[int], *, gamma: float, lam: float
) -> Estimated:
    """Return advantages and returns (M,) (GAE, equation 16): with
    ``delta_t = r_t + gamma V_{t+1} - V_t``, ``A_t = delta_t + gamma lam A_{t+1}`` and
    ``R_t = A_t + V_t``; nothing follows the last token of an answer.

    :param rewards: (M,).
    :param values: (M,), of the places before the tokens.
    """
    found = []
    parts = list(sizes)
    pairs = zip(torch.split(rewards, parts), torch.split(values, parts), strict=True)
    for reward, value in pairs:
        after = torch.cat((value[1:], value.new_zeros(min(1, len(value)))))
        delta = reward + gamma * after - value
        advantage = torch.empty_like(delta)
        running = delta.new_zeros(())
        for at in range(len(delta) - 1, -1, -1):
            running = delta[at] + gamma * lam * running
            advantage[at] = running
        found.append(advantage)
    advantages = torch.cat(found) if found else values.new_zeros(0)
    return Estimated(advantages, advantages + values)


def whitened(values: Tensor, *, shift: bool = True) -> Tensor:
    """Return values (M,) with a variance of 1, and a mean of 0 unless ``shift`` is off."""
    if values.numel() < 2:
        return values - values.mean() if shift and values.numel() else values
    mean = values.mean()
    white = (values - mean) * torch.rsqrt(values.var() + _LEAST_VARIANCE)
    return white if shift else white + mean


def value_losses(values: Tensor, before: Tensor, returns: Tensor, *, clip: float) -> Clipped:
    """Return ``max((V - R)^2, (clip(V, V_old - c, V_old + c) - R)^2) / 2`` of each token.

    Clipping is that of the PPO code that InstructGPT and TRL follow; the halves are TRL's.

    :param before: (M,), what the value head said when the answers were written.
    """
    held = torch.maximum(torch.minimum(values, before + clip), before - clip)
    free, kept = (values - returns) ** 2, (held - returns) ** 2
    return Clipped(0.5 * torch.maximum(free, kept), kept > free)


@dataclass
class AdaptivePenalty:
    """The penalty of PPO that keeps the divergence near a target (Ziegler et al., section 2.2).

    ``e = clip(KL / target - 1, -0.2, 0.2)``, ``penalty *= 1 + e n / horizon`` after n answers. A
    short horizon lets it fall to a tenth at once, and no further: it stays above 0.
    """

    penalty: float
    target: float
    """Nats of an answer."""
    horizon: float
    """Answers after which it has moved by its most."""

    def update(self, divergence: float, answers: int) -> None:
        """Take note of what some answers diverged by, in nats each."""
        error = min(0.2, max(-0.2, divergence / self.target - 1))
        self.penalty *= max(_LEAST_LEFT, 1 + error * answers / self.horizon)
