"""Losses of pairs are the published formulas, on numbers worked out by hand, in float64."""

import math

import pytest
import torch

from glmkit_rlhf.accuracy import wilson
from glmkit_rlhf.dpo import KINDS
from glmkit_rlhf.losses import Logs, bradley_terry, dpo_losses, free_losses

LOG2 = math.log(2)


def numbers(*values):
    return torch.tensor(values, dtype=torch.float64)


def log_sigmoid(x):
    return -math.log(1 + math.exp(-x))


def near(found, *right):
    assert found.dtype == torch.float64
    torch.testing.assert_close(found, numbers(*right), atol=1e-12, rtol=1e-12)


def test_bradley_terry():
    chosen, rejected = numbers(1.0, 0.0, -2.0), numbers(1.0, 3.0, -5.0)
    # e to the differences 0, -3 and 3: the odds that the better answer wins.
    odds = [1, math.exp(-3), math.exp(3)]
    near(bradley_terry(chosen, rejected), *(-math.log(each / (1 + each)) for each in odds))
    margins = numbers(0.0, 1.0, 3.0)
    right = LOG2, -log_sigmoid(-4), LOG2
    near(bradley_terry(chosen, rejected, margins), *right)
    centred = bradley_terry(chosen, rejected, margins, centering=0.01)
    near(centred, *(each + 0.01 * sum_**2 for each, sum_ in zip(right, (2, 3, -7), strict=True)))


POLICY = Logs(numbers(-10.0, -4.0), numbers(-12.0, -3.0))
REFERENCE = Logs(numbers(-11.0, -4.0), numbers(-10.0, -9.0))
SIZES = Logs(numbers(5.0, 2.0), numbers(4.0, 6.0))
RATIOS = 3.0, -6.0
"""(-10 + 11) - (-12 + 10), (-4 + 4) - (-3 + 9)."""
MEANS = 1 / 5 + 2 / 4, 0 / 2 - 6 / 6
"""The same with means over the tokens of answers."""
FORMULAS = {
    "sigmoid": lambda d: -log_sigmoid(0.5 * d),
    "hinge": lambda d: max(0.0, 1 - 0.5 * d),
    "ipo_sum": lambda d: (d - 1 / (2 * 0.5)) ** 2,
    "ipo": lambda d: (d - 1 / (2 * 0.5)) ** 2,
    "sigmoid_norm": lambda d: -log_sigmoid(0.5 * d),
    "robust": lambda d: -log_sigmoid(0.5 * d),
}
SMOOTHED = {
    "sigmoid": lambda d: -0.9 * log_sigmoid(0.5 * d) - 0.1 * log_sigmoid(-0.5 * d),
    "robust": lambda d: (-0.9 * log_sigmoid(0.5 * d) + 0.1 * log_sigmoid(-0.5 * d)) / 0.8,
}


@pytest.mark.parametrize("kind", KINDS)
def test_dpo(kind):
    ratios = MEANS if kind in ("ipo", "sigmoid_norm") else RATIOS
    found = dpo_losses(POLICY, REFERENCE, SIZES, kind, beta=0.5)
    near(found, *map(FORMULAS[kind], ratios))


@pytest.mark.parametrize("kind", SMOOTHED)
def test_dpo_with_wrong_labels(kind):
    found = dpo_losses(POLICY, REFERENCE, SIZES, kind, beta=0.5, smoothing=0.1)
    near(found, *map(SMOOTHED[kind], RATIOS))


def test_dpo_learns_nothing_from_what_its_reference_says_already():
    policy = Logs(*(each.clone().requires_grad_() for each in REFERENCE))
    lost = dpo_losses(policy, REFERENCE, SIZES, beta=0.3)
    near(lost.detach(), LOG2, LOG2)
    lost.sum().backward()
    near(policy.chosen.grad, -0.15, -0.15)  # beta times sigmoid(0)
    near(policy.rejected.grad, 0.15, 0.15)


def test_losses_without_a_first_model():
    # Answers whose tokens have, in the geometric mean, these probabilities.
    chosen, rejected = (1 / 2, 1 / 4), (1 / 5, 1 / 2)
    policy = Logs(
        numbers(*(size * math.log(p) for size, p in zip((5, 2), chosen, strict=True))),
        numbers(*(size * math.log(p) for size, p in zip((4, 6), rejected, strict=True))),
    )
    found = free_losses(policy, SIZES, "simpo", beta=2.0, gamma=0.3)
    near(found, -log_sigmoid(2 * math.log(5 / 2) - 0.3), -log_sigmoid(2 * math.log(1 / 2) - 0.3))
    # The odds of the better answers are 1 and 1/3, of the worse ones 1/4 and 1: 4 and 1/3 of those.
    found = free_losses(policy, SIZES, "orpo", beta=0.7)
    near(found, LOG2 - 0.7 * math.log(4 / 5), math.log(4) - 0.7 * math.log(1 / 4))
    certain = Logs(numbers(0.0).requires_grad_(), numbers(-1.0))
    lost = free_losses(certain, Logs(numbers(1.0), numbers(1.0)), "orpo")
    lost.sum().backward()
    assert lost.isfinite().all() and certain.chosen.grad.isfinite().all()


def test_an_interval_of_wilson():
    # 15 of 20: the textbook's (0.531, 0.888).
    found = wilson(15, 20)
    assert (found.value, round(found.low, 3), round(found.high, 3)) == (0.75, 0.531, 0.888)
    assert wilson(0, 5).low == 0 and wilson(5, 5).high == 1
