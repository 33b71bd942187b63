"""Steps over matrices that lie rounded, against the same matrices as ordinary numbers."""

import copy
from dataclasses import replace

import pytest
import torch
from peft import LoraConfig, inject_adapter_in_model
from peft.tuners.lora import Linear as PeftLinear
from torch import nn

from glmkit.models.glm import Glm
from glmkit.models.tiny import TINY
from glmkit.runtime.kernels import has_own_kernel
from glmkit.runtime.linears import Int4Linear, Int8Linear
from glmkit.runtime.quantize import quantize_int4, quantize_int8
from glmkit.training import rounded
from glmkit.training.batches import Batch, Example
from glmkit.training.fusing import fuse
from glmkit.training.learner import Learner
from glmkit.training.losses import next_token_loss
from glmkit.training.rounded import Rounded

pytestmark = [
    pytest.mark.usefixtures("one_thread"),
    pytest.mark.skipif(not has_own_kernel(), reason="no kernel for this processor"),
]
CONFIG = replace(TINY, vocab_size=160, context_length=64)
LINEARS = ["query_key_value", "dense", "dense_h_to_4h", "dense_4h_to_h"]


def pair(targets):
    """Return a dressed model over rounded matrices, and over the same ones as ordinary numbers."""
    torch.manual_seed(0)
    model = Glm(CONFIG)
    for each in model.parameters():
        nn.init.normal_(each, std=0.2)
    model.requires_grad_(False)
    other = copy.deepcopy(model)
    for name, linear in list(model.named_modules()):
        if not isinstance(linear, nn.Linear):
            continue
        four = name != model.HEAD
        weight = (quantize_int4 if four else quantize_int8)(linear.weight)
        bias = linear.bias
        kind = Int4Linear if four else Int8Linear
        model.set_submodule(name, kind(weight, bias, kernel="own"))
        other.get_submodule(name).weight.data = weight.expand(torch.float32)
    for each in (model, other):
        torch.manual_seed(1)
        lora = LoraConfig(r=4, lora_alpha=8, target_modules=targets)
        lora._register_custom_module({Int4Linear: PeftLinear, Int8Linear: PeftLinear})
        with pytest.warns(UserWarning) if each is model else torch.enable_grad():
            inject_adapter_in_model(lora, each)
        for name, part in each.named_parameters():
            if "lora_B" in name:
                nn.init.normal_(part, std=0.1)
        fuse(each.train())
    return model, other


def rows():
    torch.manual_seed(2)
    ids = torch.randint(0, 160, (3, 17), dtype=torch.int32)
    weights = torch.ones(17)
    weights[:4] = 0
    return Batch.of([Example(each.numpy(), weights.numpy()) for each in ids])


def learnt(model):
    loss = Learner(model)(rows()).total
    loss.backward()
    found = [each.grad.flatten() for each in model.parameters() if each.requires_grad]
    return loss.detach(), torch.cat(found).double()


@pytest.mark.parametrize("targets", [LINEARS, ["query_key_value"]], ids=["all", "qkv"])
@pytest.mark.parametrize("turns", [True, False])
def test_rounded_steps_learn_what_exact_ones_do(targets, turns, monkeypatch):
    monkeypatch.setattr(rounded, "_TURNED", 1 << 30 if turns else 0)
    (loss, grad), (right, exact) = (learnt(each) for each in pair(targets))
    assert abs(loss - right) < 2e-4 * right
    cosine = torch.cosine_similarity(grad, exact, dim=0)
    assert cosine > (0.999 if turns else 1 - 1e-6)
    assert abs(grad.norm() / exact.norm() - 1) < 0.01


def test_evaluating_gives_the_same_loss():
    model, _ = pair(LINEARS)
    with torch.no_grad():
        found = Learner(model)(rows()).total
    torch.testing.assert_close(found, learnt(model)[0])


def test_a_head_that_lies_rounded_is_multiplied_once():
    model, other = pair(LINEARS)
    calls = 0
    write = Rounded.write

    def counted(self, x, out):
        nonlocal calls
        calls += len(x)
        return write(self, x, out)

    hidden, wanted, weights = torch.randn(9, 64), torch.arange(9), torch.ones(9)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Rounded, "write", counted)
        found = next_token_loss(model, hidden.requires_grad_(), wanted, weights, room=4 * 160)
    (got,) = torch.autograd.grad(found, hidden)
    right = next_token_loss(other, hidden, wanted, weights)
    assert calls == 9
    torch.testing.assert_close(found, right, rtol=1e-4, atol=0)
    assert torch.cosine_similarity(got, torch.autograd.grad(right, hidden)[0]).min() > 0.999


@pytest.mark.parametrize("threads", [1, 2, 5])
def test_torchs_threads_do_the_same(threads):
    weight = quantize_int4(torch.randn(320, 64))
    linear = Int4Linear(weight, kernel="own")
    lent = Rounded(linear).own
    linear.own.threads = lent.threads = threads
    x = torch.randn(70, 64)
    assert torch.equal(lent(x), linear.own(x))
