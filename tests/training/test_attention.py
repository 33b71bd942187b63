from __future__ import annotations

from functools import cache

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from glmkit.models.causal import CausalModel
from glmkit.models.tiny import IDS, ORIGINAL, TinyLayout, _built, random_tensors, tiny_config
from glmkit.training import attention
from glmkit.training.attention import Joined, placed
from glmkit.training.batches import Batch, Example
from glmkit.training.learner import Learner

pytestmark = pytest.mark.usefixtures("one_thread")

KINDS: list[tuple[TinyLayout, int]] = [(each, prefix) for each in ORIGINAL for prefix in (0, 3)]
SIZES = (9, 14, 1, 9, 30)


@cache
def _weights(layout: TinyLayout, prefix: int) -> dict[str, Tensor]:
    return random_tensors(tiny_config(layout, prefix=prefix))


def _model(layout: TinyLayout, prefix: int = 0) -> CausalModel:
    """Return a model to train."""
    model = _built(tiny_config(layout, prefix=prefix))
    model.load_state_dict(_weights(layout, prefix), strict=False)
    if layout == "chatglm":
        model.lm_head.weight = model.transformer.word_embeddings.weight
    return model.train()


def _example(size: int, seed: int) -> Example:
    """Return an example with the blank of generation 1 a third into it."""
    drawn = np.random.default_rng(seed).integers(3, 200, size + 2).astype(np.int32)
    drawn[size // 3 : size // 3 + 2] = IDS["[gMASK]"], IDS["<sop>"]
    weights = np.where(np.arange(size + 2) > size // 3 + 1, 0.5 + seed, 0).astype(np.float32)
    return Example(drawn, weights)


def _examples() -> list[Example]:
    return [_example(size, seed) for seed, size in enumerate(SIZES)]


def _alone(model: CausalModel, example: Example) -> Tensor:
    """Return what an example costs on its own, by the model's own way over whole rows."""
    ids = torch.from_numpy(example.ids).long()
    scores = model(ids[None])[0]
    losses = F.cross_entropy(scores[:-1], ids[1:], reduction="none")
    return (losses * torch.from_numpy(example.weights[1:])).sum()


def _gradients(model: CausalModel) -> dict[str, Tensor]:
    found = {name: each.grad for name, each in model.named_parameters() if each.grad is not None}
    assert found
    return {name: each.clone() for name, each in found.items()}


@pytest.mark.parametrize(("layout", "prefix"), KINDS)
def test_packed_equals_unpacked(layout, prefix, monkeypatch):
    monkeypatch.setattr("glmkit.models.prefix.DROPOUT", 0.0)
    model = _model(layout, prefix)
    total = torch.stack([_alone(model, each) for each in _examples()]).sum()
    total.backward()
    wanted = _gradients(model)
    model.zero_grad()
    loss = Learner(model)(Batch.of(_examples()))
    loss.total.backward()
    assert loss.total.item() == pytest.approx(total.item(), rel=1e-5)
    assert loss.weight.item() == sum(each.weights.sum() for each in _examples())
    _same(_gradients(model), wanted)


def _same(found: dict[str, Tensor], wanted: dict[str, Tensor]) -> None:
    assert found.keys() == wanted.keys()
    for name, each in wanted.items():
        assert (found[name] - each).abs().max() <= 1e-4 * max(1, each.abs().max()), name


@pytest.mark.parametrize(("layout", "prefix"), KINDS)
def test_no_example_sees_another(layout, prefix):
    model = _model(layout, prefix).eval()
    one, other = _example(9, 1), _example(7, 2)

    def hidden(first: Example) -> Tensor:
        batch = Batch.of([first, other])
        positions, blocks = placed(model, batch.ids, batch.lengths)
        return model.hidden(batch.ids[None], positions, past=blocks)[0]

    with torch.no_grad():
        before, after = hidden(one), hidden(_example(9, 3))
    assert torch.equal(before[11:], after[11:])
    assert not torch.equal(before[:11], after[:11])


def test_positions_begin_anew():
    batch = Batch.of([_example(4, 0), _example(2, 1)])
    positions, _ = placed(_model("chatglm2"), batch.ids, batch.lengths)
    assert positions.tolist() == [[0, 1, 2, 3, 4, 5, 0, 1, 2, 3]]
    positions, _ = placed(_model("chatglm"), batch.ids, batch.lengths)
    assert positions.tolist() == [[[0, 1, 1, 1, 1, 1, 0, 0, 0, 0], [0, 0, 1, 2, 3, 4, 0, 1, 2, 3]]]


@pytest.mark.parametrize(("layout", "prefix"), [("chatglm", 3), ("chatglm2", 3), ("chatglm2", 0)])
def test_blocks_may_be_worked_out_again(layout, prefix):
    model = _model(layout, prefix)
    for anew in (False, True):
        model.stack.gradient_checkpointing = anew
        model.zero_grad()
        torch.manual_seed(0)  # the dropout of the prefix, once per batch
        Learner(model)(Batch.of(_examples())).total.backward()
        if not anew:
            wanted = _gradients(model)
    _same(_gradients(model), wanted)


def _as_flash(q: Tensor, k: Tensor, v: Tensor, pieces: Joined) -> Tensor:
    """Do what flash attention does with pieces of different lengths."""
    found = []
    ends = zip(pieces.query_ends.tolist(), pieces.key_ends.tolist(), strict=True)
    spans = list(ends)
    for (q0, k0), (q1, k1) in zip(spans, spans[1:], strict=False):
        assert q1 - q0 <= pieces.most_queries
        assert k1 - k0 <= pieces.most_keys
        mask = torch.ones(q1 - q0, k1 - k0, dtype=torch.bool)
        mask = mask.tril(k1 - k0 - (q1 - q0)) if pieces.causal else mask
        parts = (each.transpose(0, 1) for each in (q[q0:q1], k[k0:k1], v[k0:k1]))
        found.append(F.scaled_dot_product_attention(*parts, attn_mask=mask, enable_gqa=True))
    return torch.cat(found, dim=1).transpose(0, 1)


@pytest.mark.parametrize(("layout", "prefix"), KINDS)
def test_a_kernel_for_ragged_rows_is_told_the_same(layout, prefix, monkeypatch):
    monkeypatch.setattr("glmkit.models.prefix.DROPOUT", 0.0)
    model = _model(layout, prefix)
    Learner(model)(Batch.of(_examples())).total.backward()
    wanted = _gradients(model)
    model.zero_grad()
    monkeypatch.setattr(attention, "_ragged", lambda like: _as_flash)
    Learner(model)(Batch.of(_examples())).total.backward()
    _same(_gradients(model), wanted)


@pytest.mark.gpu
@pytest.mark.parametrize(("layout", "prefix"), KINDS)
def test_flash_attention_learns_the_same(layout, prefix, monkeypatch):
    if not torch.cuda.is_available():
        pytest.skip("no CUDA device")
    monkeypatch.setattr("glmkit.models.prefix.DROPOUT", 0.0)
    model = _model(layout, prefix).to("cuda", torch.bfloat16)
    batch = Batch.of(_examples()).to(torch.device("cuda"))
    found = Learner(model)(batch).total
    monkeypatch.setattr(attention, "_ragged", lambda like: None)
    assert found.item() == pytest.approx(Learner(model)(batch).total.item(), rel=2e-2)
