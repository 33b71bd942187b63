"""Fused LoRA layers, against PEFT's own."""

import copy

import pytest
import torch
from peft import LoraConfig, get_peft_model_state_dict, inject_adapter_in_model
from torch import nn

from glmkit.models.chatglm import ChatGlm, ChatGlmConfig
from glmkit.models.glm import Glm, GlmConfig
from glmkit.training.batches import Batch, Example
from glmkit.training.fused_lora import FusedLora
from glmkit.training.fusing import fuse
from glmkit.training.learner import Learner

pytestmark = pytest.mark.usefixtures("one_thread")

GLM = GlmConfig(
    vocab_size=160,
    hidden_size=32,
    ffn_size=64,
    layers=2,
    heads=4,
    kv_heads=2,
    head_dim=8,
    context_length=64,
    rotary_dim=4,
    qkv_bias=True,
)
CHATGLM = ChatGlmConfig(
    vocab_size=160,
    hidden_size=32,
    ffn_size=64,
    layers=2,
    heads=2,
    context_length=64,
    bos=159,
    mask=158,
    gmask=157,
)
ALL = ["query_key_value", "dense", "dense_h_to_4h", "dense_4h_to_h"]


def dressed(config, *, dtype=torch.float32, **given):
    torch.manual_seed(0)
    model = (ChatGlm if isinstance(config, ChatGlmConfig) else Glm)(config)
    for each in model.parameters():
        nn.init.normal_(each, std=0.2)
    model.to(dtype).requires_grad_(False)
    lora = LoraConfig(r=3, lora_alpha=6, **{"target_modules": ALL, **given})
    inject_adapter_in_model(lora, model)
    for name, each in model.named_parameters():
        if "lora_B" in name:
            nn.init.normal_(each, std=0.2)
    return model.train()


def batch(config):
    torch.manual_seed(1)
    examples = []
    for length in (9, 13, 6):
        ids = torch.randint(0, 150, (length,), dtype=torch.int32)
        if isinstance(config, ChatGlmConfig):
            ids[3], ids[4] = config.gmask, config.bos
        weights = torch.ones(length)
        weights[:5] = 0
        examples.append(Example(ids.numpy(), weights.numpy()))
    return Batch.of(examples)


def learnt(model, rows):
    torch.manual_seed(2)
    loss = Learner(model)(rows)
    loss.total.backward()
    grads = {name: each.grad for name, each in model.named_parameters() if each.requires_grad}
    return loss.total.detach(), grads


CONFIGS = pytest.mark.parametrize("config", [GLM, CHATGLM], ids=["glm", "chatglm"])


@CONFIGS
@pytest.mark.parametrize(
    "given",
    [
        {},
        {"target_modules": ["query_key_value"]},
        {"use_rslora": True},
        {"lora_dropout": 0.2},
        {"use_dora": True},
        {"lora_bias": True, "target_modules": ["query_key_value"]},
    ],
    ids=["all", "qkv", "rslora", "dropout", "dora", "bias"],
)
def test_fused_layers_learn_as_pefts_do(config, given):
    model = dressed(config, **given) if config is GLM or "lora_bias" not in given else None
    if model is None:
        model = dressed(config, **given)
    other = copy.deepcopy(model)
    fuse(other)
    assert any(isinstance(each, FusedLora) for each in other.modules())
    (loss, grads), (own, mine) = learnt(model, batch(config)), learnt(other, batch(config))
    torch.testing.assert_close(own, loss)
    assert grads.keys() == mine.keys()
    for name, each in grads.items():
        torch.testing.assert_close(mine[name], each, atol=1e-4, rtol=1e-3, msg=name)


def test_saving_does_not_notice():
    model = dressed(GLM)
    before = {name: each.data_ptr() for name, each in model.state_dict().items()}
    kept = get_peft_model_state_dict(model, adapter_name="default").keys()
    fuse(model)
    assert {name: each.data_ptr() for name, each in model.state_dict().items()} == before
    assert get_peft_model_state_dict(model, adapter_name="default").keys() == kept


def test_checkpointed_blocks_learn_the_same():
    model = dressed(GLM)
    fuse(model)
    other = copy.deepcopy(model)
    other.stack.gradient_checkpointing = True
    (loss, grads), (own, mine) = learnt(model, batch(GLM)), learnt(other, batch(GLM))
    torch.testing.assert_close(own, loss)
    for name, each in grads.items():
        torch.testing.assert_close(mine[name], each, msg=name)


def test_adapters_that_are_switched_off_do_nothing():
    model = dressed(GLM)
    fuse(model)
    rows = batch(GLM)
    with torch.no_grad():
        on = Learner(model)(rows).total
        for each in model.modules():
            if isinstance(each, FusedLora):
                each.enable_adapters(False)
        off = Learner(model)(rows).total
        for name, each in model.named_parameters():
            if "lora_B" in name:
                each.zero_()
        for each in model.modules():
            if isinstance(each, FusedLora):
                each.enable_adapters(True)
        bare = Learner(model)(rows).total
    assert off != on
    torch.testing.assert_close(off, bare)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_bases_learn_nearly_the_same(dtype):
    model = dressed(GLM)
    half = dressed(GLM, dtype=dtype)
    fuse(half)
    (loss, grads), (own, mine) = learnt(model, batch(GLM)), learnt(half, batch(GLM))
    assert abs(own - loss) < 0.02 * loss
    for name, each in grads.items():
        other = mine[name].float()
        assert (other - each).norm() < 0.1 * each.norm() + 1e-3, name
