"""Gradients of our modules, against those of transformers, and of the published formulas."""

import math

import pytest
import torch
import torch.nn.functional as F

from glmkit.models.tiny import TINY_FIRST, tiny_checkpoint
from glmkit.runtime.loading import load_local
from glmkit.training.batches import Batch, Example
from glmkit.training.fusing import fuse
from glmkit.training.learner import Learner

pytestmark = pytest.mark.usefixtures("one_thread")
LENGTHS = (7, 4, 9)


def examples(ends=()):
    torch.manual_seed(3)
    found = []
    for length in LENGTHS:
        ids = torch.randint(3, 250, (length,), dtype=torch.int32)
        for at, each in enumerate(ends, 1):
            ids[at] = each
        weights = torch.rand(length)
        weights[: 1 + len(ends)] = 0
        found.append(Example(ids.numpy(), weights.numpy()))
    return found


def ours(folder, rows):
    """Return the loss, the gradient of every parameter by name, and the model."""
    model = load_local(folder, dtype="float32").model.train().requires_grad_(True)
    fuse(model)
    loss = Learner(model)(Batch.of(rows)).total
    loss.backward()
    return (
        loss.detach(),
        {name: each.grad for name, each in model.named_parameters() if each.grad is not None},
        model,
    )


def weighted(logits, row):
    ids, weights = torch.from_numpy(row.ids).long(), torch.from_numpy(row.weights)
    losses = F.cross_entropy(logits[:-1], ids[1:], reduction="none")
    return (losses * weights[1:]).sum()


def test_gradients_equal_those_of_transformers_glm(tmp_path):
    from transformers import GlmForCausalLM

    folder = tiny_checkpoint(tmp_path)
    rows = examples()
    loss, mine, model = ours(folder, rows)
    theirs = GlmForCausalLM.from_pretrained(folder, dtype=torch.float32).double().train()
    total = sum(weighted(theirs(torch.from_numpy(r.ids).long()[None]).logits[0], r) for r in rows)
    total.backward()
    assert float(loss) == pytest.approx(float(total.detach()), rel=1e-5)
    grads = {name: each.grad for name, each in theirs.named_parameters()}
    for at in range(model.config.layers):
        own, other = f"transformer.encoder.layers.{at}", f"model.layers.{at}"
        parts = [grads[f"{other}.self_attn.{each}_proj.weight"] for each in "qkv"]
        near(mine[f"{own}.self_attention.query_key_value.weight"], torch.cat(parts))
        near(mine[f"{own}.self_attention.dense.weight"], grads[f"{other}.self_attn.o_proj.weight"])
        near(mine[f"{own}.mlp.dense_h_to_4h.weight"], grads[f"{other}.mlp.gate_up_proj.weight"])
        near(mine[f"{own}.mlp.dense_4h_to_h.weight"], grads[f"{other}.mlp.down_proj.weight"])
        near(mine[f"{own}.input_layernorm.weight"], grads[f"{other}.input_layernorm.weight"])
    near(mine["transformer.encoder.final_layernorm.weight"], grads["model.norm.weight"])
    near(mine["transformer.embedding.word_embeddings.weight"], grads["model.embed_tokens.weight"])


def near(mine, theirs):
    assert float((mine.double() - theirs.double()).norm() / theirs.double().norm()) < 1e-4


@pytest.mark.parametrize("layout", ["chatglm2", "chatglm3"])
def test_original_layouts_have_the_gradients_of_the_hub_layout(tmp_path, layout):
    """Equal weights under other names: what transformers gives for one holds for all."""
    rows = examples()
    _, hub, _ = ours(tiny_checkpoint(tmp_path / "hub"), rows)
    _, own, _ = ours(tiny_checkpoint(tmp_path / layout, layout=layout), rows)
    assert own.keys() == hub.keys()
    for name, each in hub.items():
        assert own[name].shape == each.shape
        near(own[name], each)


def test_gradients_of_the_first_generation_are_those_of_its_formulas(tmp_path):
    folder = tiny_checkpoint(tmp_path, layout="chatglm")
    config = TINY_FIRST
    rows = examples(ends=(config.gmask, config.bos))
    loss, mine, model = ours(folder, rows)
    weights = {
        name: each.detach().double().requires_grad_() for name, each in model.named_parameters()
    }
    total = sum(weighted(formulas(config, weights, row), row) for row in rows)
    total.backward()
    assert float(loss) == pytest.approx(float(total.detach()), rel=1e-5)
    for name, each in mine.items():
        near(each, weights[name].grad)


def formulas(config, weights, row):
    """Return the scores (T, V) of a row as the model was published, in the plainest words."""
    ids = torch.from_numpy(row.ids).long()
    tokens, hidden, heads = len(ids), config.hidden_size, config.heads
    size = hidden // heads
    context = row.ids.tolist().index(config.bos)
    blank = row.ids.tolist().index(config.gmask)
    first = [at if at < context else blank for at in range(tokens)]
    second = [max(0, at - context + 1) for at in range(tokens)]
    sees = torch.tensor([[j <= i or j < context for j in range(tokens)] for i in range(tokens)])
    half = size // 2
    turn = 10_000.0 ** -(torch.arange(0, half, 2).float() / half)
    turn = turn.half().double()

    def norm(x, stem):
        return F.layer_norm(
            x, (hidden,), weights[f"{stem}.weight"], weights[f"{stem}.bias"], config.norm_eps
        )

    def linear(x, stem):
        return x @ weights[f"{stem}.weight"].t() + weights[f"{stem}.bias"]

    def rotated(x, at):
        angles = torch.tensor(at).double()[:, None] * turn
        low, high = x.chunk(2, dim=-1)
        cos, sin = angles.float().cos().double(), angles.float().sin().double()
        return torch.cat((low * cos - high * sin, low * sin + high * cos), dim=-1)

    def both(x):
        left, right = x.chunk(2, dim=-1)
        return torch.cat((rotated(left, first), rotated(right, second)), dim=-1)

    x = weights["transformer.word_embeddings.weight"][ids]
    scale = math.sqrt(2 * 28)
    for at in range(config.layers):
        stem = f"transformer.layers.{at}"
        a = norm(x, f"{stem}.input_layernorm")
        mixed = []
        for qkv in linear(a, f"{stem}.attention.query_key_value").chunk(heads, dim=-1):
            q, k, v = qkv.chunk(3, dim=-1)
            scores = (both(q) @ both(k).t() / math.sqrt(size)).masked_fill(~sees, -math.inf)
            mixed.append(scores.softmax(-1) @ v)
        x = scale * a + linear(torch.cat(mixed, dim=-1), f"{stem}.attention.dense")
        m = norm(x, f"{stem}.post_attention_layernorm")
        u = linear(m, f"{stem}.mlp.dense_h_to_4h")
        gelu = 0.5 * u * (1 + torch.tanh(math.sqrt(2 / math.pi) * (u + 0.044715 * u**3)))
        x = scale * m + linear(gelu, f"{stem}.mlp.dense_4h_to_h")
    head = weights.get("lm_head.weight", weights["transformer.word_embeddings.weight"])
    return norm(x, "transformer.final_layernorm") @ head.t()
