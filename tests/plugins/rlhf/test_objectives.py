"""The formulas of PPO and GRPO, on numbers worked out by hand, in float64."""

import math

import pytest
import torch
from hypothesis import given, settings, strategies as st

from glmkit_rlhf.objectives import (
    AdaptivePenalty,
    gae,
    group_advantages,
    k3,
    of_sequences,
    penalised,
    per_answer,
    surrogate,
    token_weights,
    value_losses,
    whitened,
)


def numbers(*values):
    return torch.tensor(values, dtype=torch.float64)


def close(found, *expected):
    assert found.dtype == torch.float64
    assert found.flatten().tolist() == pytest.approx(list(expected), abs=1e-12)


def test_the_divergence_is_r_minus_one_minus_log_r():
    # r = 1/2, 1, 2
    policy, reference = (
        numbers(math.log(0.5), -1.0, math.log(0.2)),
        numbers(math.log(0.25), -1.0, math.log(0.4)),
    )
    close(k3(policy, reference), 0.5 - 1 + math.log(2), 0.0, 2 - 1 - math.log(2))


def test_the_surrogate_is_clipped_where_a_step_would_go_on():
    ratios, advantages = numbers(1.5, 0.5, 1.5, 0.5, 1.0), numbers(2, 2, -2, -2, 2)
    found = surrogate(ratios.log(), advantages, low=0.2)
    # min(1.5*2, 1.2*2), min(.5*2, .8*2), min(-3, -2.4), min(-1, -1.6), 2
    close(found.losses, -2.4, -1.0, 3.0, 1.6, -2.0)
    assert found.clipped.tolist() == [True, False, False, True, False]
    close(surrogate(ratios.log(), advantages, low=0.2, high=0.28).losses, -2.56, -1, 3, 1.6, -2)


def test_advantages_within_groups():
    rewards = numbers(1, 0, 0, 1, 5, 5, 5, 5).view(2, 4)
    deviation = math.sqrt(4 * 0.25 / 3)
    one = 0.5 / (deviation + 1e-4)
    close(group_advantages(rewards), one, -one, -one, one, 0, 0, 0, 0)
    close(group_advantages(rewards, "none"), 0.5, -0.5, -0.5, 0.5, 0, 0, 0, 0)
    whole = float(rewards.std()) + 1e-4
    close(group_advantages(rewards, "batch")[0], *(each / whole for each in (0.5, -0.5, -0.5, 0.5)))


def test_variants_of_the_loss_of_grpo():
    # Two answers of 1 and 3 tokens with the losses 4 and 1, 2, 3.
    losses, sizes = numbers(4, 1, 2, 3), [1, 3]

    def mean(kind):
        weights = token_weights(sizes, kind, longest=8, tokens=4, answers=2)
        return float((losses * weights).sum() / 2)

    assert mean("grpo") == pytest.approx((4 + 2) / 2, abs=1e-12)
    assert mean("bnpo") == mean("dapo") == pytest.approx(10 / 4, abs=1e-12)
    assert mean("dr_grpo") == pytest.approx(10 / (2 * 8), abs=1e-12)


def test_sequences_have_one_ratio_and_tokens_their_gradients():
    log_probs = numbers(-1.0, -2.0, -0.5).requires_grad_()
    old = numbers(-1.2, -1.4, -0.5)
    found = of_sequences(log_probs - old, log_probs, [2, 1])
    close(found.detach(), -0.2, -0.2, 0.0)
    found.exp().sum().backward()
    close(log_probs.grad, math.exp(-0.2), math.exp(-0.2), 1.0)


def test_rewards_of_tokens():
    policy, first = numbers(-1, -2, -3), numbers(-1.5, -1, -3)
    found = penalised(numbers(10, 20), policy, first, [2, 1], 0.1)
    close(found, -0.05, 0.1 + 10, 0.0 + 20)
    close(per_answer(policy, [2, 1]), -3, -3)


def test_generalised_advantages():
    rewards, values = numbers(0, 1, 2), numbers(0.5, 0.25, 1.0)
    found = gae(rewards, values, [2, 1], gamma=0.9, lam=0.5)
    last = 1 - 0.25
    first = (0 + 0.9 * 0.25 - 0.5) + 0.9 * 0.5 * last
    close(found.advantages, first, last, 1.0)
    close(found.returns, first + 0.5, 1.0, 2.0)


@settings(deadline=None, max_examples=50)
@given(
    st.lists(st.floats(-3, 3), min_size=1, max_size=12),
    st.floats(0, 1),
    st.data(),
)
def test_with_lambda_one_returns_are_what_came_after(rewards, gamma, data):
    values = data.draw(st.lists(st.floats(-3, 3), min_size=len(rewards), max_size=len(rewards)))
    found = gae(numbers(*rewards), numbers(*values), [len(rewards)], gamma=gamma, lam=1.0)
    after = [
        sum(each * gamma**at for at, each in enumerate(rewards[start:]))
        for start in range(len(rewards))
    ]
    assert found.returns.tolist() == pytest.approx(after, abs=1e-9)


def test_whitening():
    found = whitened(numbers(1, 2, 3, 6))
    deviation = math.sqrt((4 + 1 + 0 + 9) / 3 + 1e-8)
    close(found, -2 / deviation, -1 / deviation, 0.0, 3 / deviation)
    close(whitened(numbers(1, 2, 3, 6), shift=False) - found, 3, 3, 3, 3)
    close(whitened(numbers(7)), 0.0)


def test_the_loss_of_values_is_clipped():
    values, before, returns = numbers(1.0, 1.0, 0.1), numbers(0.0, 0.9, 0.0), numbers(1.0, 3.0, 1.0)
    found = value_losses(values, before, returns, clip=0.2)
    # max(0, (0.2 - 1)^2), max(4, 4), max(0.81, 0.81), halved
    close(found.losses, 0.32, 2.0, 0.405)
    assert found.clipped.tolist() == [True, False, False]


def test_the_penalty_follows_its_target():
    penalty = AdaptivePenalty(0.2, target=6.0, horizon=100)
    penalty.update(6.6, 10)  # e = 0.1
    assert penalty.penalty == pytest.approx(0.2 * 1.01)
    penalty.update(600, 10)  # e = 0.2 at most
    penalty.update(0, 10)  # and -0.2 at least
    assert penalty.penalty == pytest.approx(0.2 * 1.01 * 1.02 * 0.98)
    short = AdaptivePenalty(0.2, target=6.0, horizon=4)
    short.update(0, 100)
    assert short.penalty == pytest.approx(0.02)
