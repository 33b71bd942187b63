"""Linear layers that go back in one step, against autograd through the same operations."""

import itertools

import pytest
import torch
from torch import nn

from glmkit.models.causal import project
from glmkit.models.glm import RmsNorm, rotate_
from glmkit.training.linears import FusedLinear, Shape, step
from glmkit.training.turning import turned

pytestmark = pytest.mark.usefixtures("one_thread")

N, K, M, R = 7, 6, 8, 3


def numbers(*size, dtype=torch.float64):
    return torch.randn(*size, dtype=dtype, requires_grad=True)


@pytest.mark.parametrize(
    ("normed", "biased", "lora", "gated", "onto"), list(itertools.product([False, True], repeat=5))
)
def test_gradients_are_slopes(normed, biased, lora, gated, onto):
    torch.manual_seed(0)
    shape = Shape(eps=1e-5, scale=2.0, gated=gated)
    given = {
        "x": numbers(N, K),
        "weight": numbers(M, K),
        "norm": numbers(K) if normed else None,
        "bias": numbers(M) if biased else None,
        "down": numbers(R, K) if lora else None,
        "up": numbers(M, R) if lora else None,
        "onto": numbers(N, M // 2 if gated else M) if onto else None,
    }
    names = [name for name, each in given.items() if each is not None]

    def run(*tensors):
        got = given | dict(zip(names, tensors, strict=True))
        pair = (got.pop("down"), got.pop("up"))
        return step(**got, lora=pair if lora else None, shape=shape)

    torch.autograd.gradcheck(run, tuple(given[each] for each in names))


@pytest.mark.parametrize("learns", [False, True])
@pytest.mark.parametrize("gated", [False, True])
def test_a_fused_linear_is_the_linear(gated, learns):
    torch.manual_seed(0)
    plain, norm = nn.Linear(K, M, bias=False), RmsNorm(K, 1e-5)
    nn.init.normal_(norm.weight)
    fused = FusedLinear(K, M, bias=False)
    fused.load_state_dict(plain.state_dict())
    for each in (plain, fused):
        each.requires_grad_(learns)
    x = torch.randn(2, 5, K, requires_grad=True)
    onto = torch.randn(2, 5, M // 2 if gated else M, requires_grad=True)
    outs = [project(each, x, norm=norm, gated=gated, onto=onto) for each in (plain, fused)]
    torch.testing.assert_close(*outs)
    wanted = torch.randn_like(outs[0])
    got = []
    for out, linear in zip(outs, (plain, fused), strict=True):
        inputs = [x, onto, norm.weight, *([linear.weight] if learns else [])]
        got.append(torch.autograd.grad(out, inputs, wanted))
    for each, other in zip(*got, strict=True):
        torch.testing.assert_close(each, other, atol=1e-5, rtol=1e-4)


def test_a_frozen_step_keeps_what_went_in_and_nothing_of_it_twice():
    fused = FusedLinear(K, M, bias=False).requires_grad_(False)
    norm = RmsNorm(K, 1e-5).requires_grad_(False)
    nn.init.ones_(norm.weight)
    x = torch.randn(N, K, requires_grad=True)
    kept = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t) or t, lambda t: t):
        project(fused, x, norm=norm)
    sizes = sorted(each.numel() for each in kept if each is not fused.weight)
    assert sizes == sorted([x.numel(), norm.weight.numel(), N])


def test_turning_goes_back_by_turning_back():
    heads = numbers(1, 4, 3, 6, dtype=torch.float32)
    turns = torch.polar(torch.ones(1, 4, 1, 2), torch.randn(1, 4, 1, 2))
    wanted = torch.randn(1, 4, 3, 6)
    out = turned(heads, turns, 2)
    (got,) = torch.autograd.grad(out, heads, wanted)
    plain = heads.clone()
    rotate_(plain[:, :, :2], turns)
    torch.testing.assert_close(out, plain)
    torch.testing.assert_close(got, torch.autograd.grad(plain, heads, wanted)[0])
