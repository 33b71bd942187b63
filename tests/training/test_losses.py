"""The loss by parts, against torch's own of all scores at once."""

import pytest
import torch
import torch.nn.functional as F

from glmkit.models.glm import Glm, GlmConfig
from glmkit.runtime.linears import Int8Linear
from glmkit.runtime.quantize import quantize_int8
from glmkit.training.losses import _HeadLoss, next_token_loss

pytestmark = pytest.mark.usefixtures("one_thread")

CONFIG = GlmConfig(
    vocab_size=160,
    hidden_size=32,
    ffn_size=64,
    layers=1,
    heads=2,
    kv_heads=1,
    head_dim=16,
    context_length=64,
    rotary_dim=8,
)


def glm(dtype=torch.float32):
    torch.manual_seed(0)
    model = Glm(CONFIG)
    for each in model.parameters():
        torch.nn.init.normal_(each, std=0.3)
    return model.to(dtype)


def asked(dtype=torch.float32, tokens=23):
    torch.manual_seed(1)
    hidden = torch.randn(tokens, CONFIG.hidden_size, dtype=dtype, requires_grad=True)
    weights = torch.rand(tokens) * (torch.rand(tokens) > 0.3)
    return hidden, torch.randint(0, CONFIG.vocab_size, (tokens,)), weights


def plainly(model, hidden, wanted, weights):
    return (F.cross_entropy(model.scores(hidden), wanted, reduction="none") * weights).sum()


@pytest.mark.parametrize("rows", [1, 5, 23, 100])
def test_the_loss_by_parts_is_that_of_all_scores(rows):
    model, (hidden, wanted, weights) = glm(), asked()
    room = rows * CONFIG.vocab_size
    found = next_token_loss(model, hidden, wanted, weights, room=room)
    learnt = [hidden, *model.transformer.output_layer.parameters(), model.norm.weight]
    got = torch.autograd.grad(found * 3, learnt)
    right = plainly(model, hidden, wanted, weights)
    torch.testing.assert_close(found, right)
    for each, other in zip(got, torch.autograd.grad(right * 3, learnt), strict=True):
        torch.testing.assert_close(each, other, atol=1e-4, rtol=1e-4)


def test_gradients_of_the_loss_are_its_slopes():
    _, wanted, weights = asked(tokens=5)
    hidden = torch.randn(5, 4, dtype=torch.float64, requires_grad=True)
    table = torch.randn(11, 4, dtype=torch.float64, requires_grad=True)
    torch.autograd.gradcheck(
        lambda x, w: _HeadLoss.apply(x, w, wanted % 11, weights, 2), (hidden, table)
    )


def test_a_frozen_head_gets_no_gradient_and_nobody_holds_all_scores():
    model, (hidden, wanted, weights) = glm(), asked(tokens=64)
    model.requires_grad_(False)
    most = 0

    class Watch(torch.utils._python_dispatch.TorchDispatchMode):
        def __torch_dispatch__(self, op, types, args=(), kwargs=None):
            nonlocal most
            out = op(*args, **(kwargs or {}))
            if isinstance(out, torch.Tensor):
                most = max(most, out.numel())
            return out

    with Watch():
        next_token_loss(model, hidden, wanted, weights, room=4 * CONFIG.vocab_size).backward()
    assert most == CONFIG.hidden_size * CONFIG.vocab_size  # a view of the table
    assert hidden.grad is not None
    assert model.transformer.output_layer.weight.grad is None


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_is_near_single(dtype):
    model, (hidden, wanted, weights) = glm(), asked()
    right = plainly(model, hidden, wanted, weights)
    (slope,) = torch.autograd.grad(right, hidden)
    half = hidden.detach().to(dtype).requires_grad_()
    found = next_token_loss(glm(dtype), half, wanted, weights, room=5 * CONFIG.vocab_size)
    assert found.dtype == torch.float32
    (got,) = torch.autograd.grad(found, half)
    assert abs(found - right) < 0.01 * right
    assert (got.float() - slope).norm() < 0.03 * slope.norm()


def test_heads_that_are_no_plain_matrix_are_asked_for_their_scores():
    model, (hidden, wanted, weights) = glm(), asked()
    model.requires_grad_(False)
    own = model.transformer.output_layer.weight
    model.set_submodule(model.HEAD, Int8Linear(quantize_int8(own), kernel=None))
    found = next_token_loss(model, hidden, wanted, weights, room=5 * CONFIG.vocab_size)
    right = plainly(model, hidden, wanted, weights)
    torch.testing.assert_close(found, right)
    for each, other in zip(
        torch.autograd.grad(found, hidden), torch.autograd.grad(right, hidden), strict=True
    ):
        torch.testing.assert_close(each, other)


def test_no_gradients_are_made_while_evaluating():
    model, (hidden, wanted, weights) = glm(), asked()
    with torch.no_grad():
        found = next_token_loss(model, hidden, wanted, weights)
        torch.testing.assert_close(found, plainly(model, hidden, wanted, weights))
    assert not found.requires_grad
