"""Log-probabilities by parts, against torch's own of all scores at once."""

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from glmkit.runtime.linears import Int8Linear
from glmkit.runtime.quantize import quantize_int8
from glmkit.training.losses import _HeadLogProbs, token_likelihoods, token_log_probs

from .test_losses import CONFIG, asked, glm

pytestmark = pytest.mark.usefixtures("one_thread")


def plainly(model, hidden, wanted, temperature=1.0):
    logs = (model.scores(hidden) / temperature).log_softmax(-1)
    return logs.gather(-1, wanted[:, None])[:, 0], -(logs.exp() * logs).sum(-1)


@pytest.mark.parametrize(("rows", "temperature"), [(1, 1.0), (5, 0.7), (100, 1.0)])
@pytest.mark.parametrize("frozen", [True, False])
def test_log_probabilities_by_parts_are_those_of_all_scores(rows, temperature, frozen):
    model, (hidden, wanted, weights) = glm(), asked()
    model.transformer.output_layer.requires_grad_(not frozen)
    room = rows * CONFIG.vocab_size
    found = token_likelihoods(model, hidden, wanted, temperature=temperature, room=room)
    alone = token_log_probs(model, hidden, wanted, temperature=temperature, room=room)
    right, spread = plainly(model, hidden, wanted, temperature)
    torch.testing.assert_close(found.log_probs, right)
    torch.testing.assert_close(found.entropies, spread)
    assert torch.equal(alone, found.log_probs)
    learnt = [hidden, model.norm.weight]
    learnt += [] if frozen else list(model.transformer.output_layer.parameters())
    got = torch.autograd.grad((found.log_probs * weights).sum(), learnt)
    for each, other in zip(got, torch.autograd.grad((right * weights).sum(), learnt), strict=True):
        torch.testing.assert_close(each, other, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("learns", [True, False])
def test_gradients_of_log_probabilities_are_their_slopes(learns):
    wanted = torch.tensor([0, 3, 3, 10, 7])
    hidden = torch.randn(5, 4, dtype=torch.float64, requires_grad=True)
    table = torch.randn(11, 4, dtype=torch.float64, requires_grad=learns)
    torch.autograd.gradcheck(
        lambda x, w: _HeadLogProbs.apply(x, w, wanted, 2, None, True)[0], (hidden, table)
    )


@pytest.mark.parametrize("kernel", ["own", None])
def test_a_head_that_lies_rounded_gives_what_its_expanded_matrix_gives(kernel):
    model, (hidden, wanted, _) = glm(), asked()
    head = model.transformer.output_layer
    rounded = Int8Linear(quantize_int8(head.weight.detach()), kernel=kernel)
    head.weight.data = rounded.expanded(torch.float32)
    right, spread = plainly(model, hidden, wanted)
    slopes = torch.autograd.grad(right.sum(), hidden)[0]
    model.transformer.output_layer = rounded
    found = token_likelihoods(model, hidden, wanted)
    torch.testing.assert_close(found.log_probs, right, atol=5e-3, rtol=1e-3)
    torch.testing.assert_close(found.entropies, spread, atol=5e-3, rtol=1e-3)
    got = torch.autograd.grad(found.log_probs.sum(), hidden)[0]
    assert torch.cosine_similarity(got.flatten(), slopes.flatten(), dim=0) > 0.999


def test_nobody_holds_all_scores_and_autograd_keeps_none():
    model, (hidden, wanted, _) = glm(), asked(tokens=64)
    most = 0

    class Watch(TorchDispatchMode):
        def __torch_dispatch__(self, op, types, args=(), kwargs=None):
            nonlocal most
            out = op(*args, **(kwargs or {}))
            most = max(most, out.numel()) if isinstance(out, torch.Tensor) else most
            return out

    with Watch():
        room = 4 * CONFIG.vocab_size
        token_log_probs(model, hidden, wanted, room=room).sum().backward()
    assert most <= max(room, CONFIG.vocab_size * CONFIG.hidden_size)
