"""Attention over the slot cache: right, and the same to the last bit however tokens come in."""

import copy

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings, strategies as st
from torch.nn.modules.module import register_module_forward_hook

from glmkit.models.glm import Glm, GlmConfig, rotations
from glmkit.models.tiny import tiny_checkpoint
from glmkit.runtime import past as seeing, whole
from glmkit.runtime.cache import KVCache
from glmkit.runtime.kernels import has_own_kernel
from glmkit.runtime.loading import load_local
from glmkit.runtime.past import Front, Span

own = pytest.mark.skipif(not has_own_kernel(), reason="our extension is not here")


def shape(group, shared, size, rotary):
    config = GlmConfig(
        vocab_size=8,
        hidden_size=32,
        ffn_size=32,
        layers=1,
        heads=group * shared,
        kv_heads=shared,
        head_dim=size,
        context_length=512,
        rotary_dim=rotary,
    )
    return config


def cache_for(config, slots, tokens, *, dtype=torch.float32, ahead=0):
    like = torch.empty(0, dtype=dtype)
    prefix = None
    if ahead:
        prefix = torch.randn(config.layers, ahead, 2 * config.kv_heads, config.head_dim)
    cache = KVCache(config, slots, likes=[like] * config.layers, prefix=prefix)
    cache.reserve(slots, tokens)
    for _ in range(slots):
        cache.open()
    return cache


def random_qkv(config, rows, tokens):
    return torch.randn(rows, tokens, config.heads + 2 * config.kv_heads, config.head_dim)


def turned(config, qkv, start):
    """Return queries, keys and values (T, heads, D) of a row in float64, turned by their places."""
    places = torch.arange(start, start + len(qkv))[None]
    turns = rotations(config, places)[0].to(torch.complex128)
    heads, shared = config.heads, config.kv_heads
    q, k, v = qkv.double().split((heads, shared, shared), dim=1)
    both = torch.cat((q, k), dim=1)
    front = torch.view_as_complex(
        both[..., : config.rotary_dim].unflatten(-1, (-1, 2)).contiguous()
    )
    both[..., : config.rotary_dim] = torch.view_as_real(front * turns).flatten(-2)
    return *both.split((heads, shared), dim=1), v


def expected(config, qkv, start, ahead):
    """Return what the tokens from ``start`` on see of a whole row (T, H + 2G, D), in float64."""
    q, k, v = (each.transpose(0, 1)[None] for each in turned(config, qkv, 0))
    front = ahead.double().transpose(0, 1)[None]
    keys, values = front.chunk(2, dim=1)
    k, v = torch.cat((keys, k), dim=2), torch.cat((values, v), dim=2)
    mask = torch.ones(len(qkv), k.shape[2], dtype=torch.bool).tril(len(ahead))
    seen = F.scaled_dot_product_attention(q, k, v, attn_mask=mask, enable_gqa=True)
    return seen[0].transpose(0, 1)[start:].flatten(1)


def fed(config, cache, qkv, slot, pieces):
    """Feed rows (B, T, H + 2G, D) into slots piece by piece; return all that was seen."""
    out, start = [], 0
    for tokens in pieces:
        span = Span(cache, slot, start, tokens, rows=len(qkv))
        turns = rotations(config, torch.arange(start, start + tokens).expand(len(qkv), -1))
        out.append(span.attend(0, qkv[:, start : start + tokens], turns))
        start += tokens
    return torch.cat(out, dim=1)


shapes = st.builds(
    lambda group, shared, size, part: shape(group, shared, 2 * size, 2 * max(1, size * part // 4)),
    st.integers(1, 7),
    st.integers(1, 3),
    st.integers(1, 20),
    st.integers(1, 4),
)


@own
@settings(max_examples=40, deadline=None)
@given(
    config=shapes,
    lengths=st.lists(st.integers(1, 150), min_size=1, max_size=4),
    tokens=st.integers(1, 40),
    ahead=st.sampled_from([0, 0, 3, 70]),
)
def test_attention_is_right(config, lengths, tokens, ahead):
    torch.manual_seed(0)
    start = min(lengths) - 1
    rows = [random_qkv(config, 1, start + tokens)[0] for _ in lengths]
    cache = cache_for(config, len(rows) + 1, start + tokens + 9, ahead=ahead)
    front = cache.layers[0][0, :, :ahead].transpose(0, 1).clone()
    got = fed(config, cache, torch.stack(rows), 1, [start, tokens] if start else [tokens])
    for row, mixed in zip(rows, got, strict=True):
        want = expected(config, row, 0, front)
        assert float((mixed.double() - want).abs().max()) < 2e-6


@own
@settings(max_examples=25, deadline=None)
@given(
    config=shapes,
    length=st.integers(2, 200),
    cuts=st.lists(st.integers(1, 199), max_size=4),
    slot=st.integers(0, 2),
)
def test_it_is_the_same_in_pieces_and_in_any_slot(config, length, cuts, slot):
    torch.manual_seed(1)
    qkv = random_qkv(config, 1, length)
    alone = fed(config, cache_for(config, 1, length), qkv, 0, [length])
    ends = [0, *sorted({each for each in cuts if each < length}), length]
    pieces = [end - start for start, end in zip(ends, ends[1:], strict=False)]
    assert torch.equal(fed(config, cache_for(config, 3, length + 30), qkv, slot, pieces), alone)
    beside = torch.cat(
        (random_qkv(config, slot, length), qkv, random_qkv(config, 2 - slot, length))
    )
    batch = fed(config, cache_for(config, 3, length), beside, 0, [length])
    assert torch.equal(batch[slot], alone[0])


@own
@pytest.mark.parametrize("group", [1, 3, 16])
def test_steps_of_uneven_rows_equal_whole_rows(group):
    torch.manual_seed(2)
    config = shape(group, 2, 24, 12)
    lengths = [1, 63, 64, 65, 130]
    rows = [random_qkv(config, 1, each + 3) for each in lengths]
    cache = cache_for(config, len(rows), 140)
    for slot, (row, length) in enumerate(zip(rows, lengths, strict=True)):
        fed(config, cache, row[:, :length], slot, [length])
    whole_rows = [fed(config, cache_for(config, 1, 140), row, 0, [row.shape[1]]) for row in rows]
    for step in range(3):
        at = [length + step for length in lengths]
        new = torch.cat([row[:, place, None] for row, place in zip(rows, at, strict=True)])
        turns = rotations(config, torch.tensor(at)[:, None])
        got = Front(cache, at).attend(0, new, turns)
        for row, place, want in zip(got, at, whole_rows, strict=True):
            assert torch.equal(row[0], want[0, place])


@own
def test_no_number_in_one_row_touches_another():
    torch.manual_seed(3)
    config = shape(2, 2, 16, 16)
    qkv = random_qkv(config, 3, 70)
    sound = fed(config, cache_for(config, 3, 90), qkv, 0, [70])
    qkv[1, 40] = float("nan")
    got = fed(config, cache_for(config, 3, 90), qkv, 0, [70])
    assert torch.equal(got[0], sound[0])
    assert torch.equal(got[2], sound[2])
    assert bool(got[1, 40:].isnan().all())


@own
def test_what_lies_behind_a_row_is_never_seen():
    torch.manual_seed(4)
    config = shape(3, 1, 20, 4)
    qkv = random_qkv(config, 1, 37)
    cache = cache_for(config, 2, 128)
    want = fed(config, cache, qkv, 1, [37])
    cache.layers[0].fill_(float("nan"))
    assert torch.equal(fed(config, cache, qkv, 1, [20, 17]), want)


@own
def test_weights_are_as_fine_as_single_precision():
    config = shape(1, 1, 2, 2)
    for score in torch.linspace(-80, 0, 600).tolist():
        qkv = torch.tensor([[[1.0, 0], [0, 0], [0, 0]], [[1.0, 0], [0, 0], [1.0, 0]]])[None]
        qkv[0, 1, 1, 0] = score * 2**0.5
        got = Span(cache_for(config, 1, 2), 0, 0, 2).attend(0, qkv, None)[0, 1, 0].double()
        exact = torch.tensor(score, dtype=torch.float32).double().exp()
        exact = exact / (1 + exact)
        # The score itself is rounded: half a unit of its last place changes so much.
        assert abs(float(got / exact) - 1) < 1e-6 + 2e-7 * abs(score)


@own
def test_tokens_that_do_not_fit_are_refused():
    config = shape(1, 1, 8, 8)
    cache = cache_for(config, 1, 128)
    qkv = random_qkv(config, 1, 3)
    with pytest.raises(ValueError, match="do not fit"):
        Span(cache, 0, 126, 3).attend(0, qkv, None)


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-5), (torch.bfloat16, 0.1)])
def test_torch_attends_likewise_where_our_kernel_does_not(monkeypatch, dtype, tolerance):
    torch.manual_seed(5)
    config = shape(2, 2, 16, 8)
    model = Glm(shape(2, 2, 16, 8))
    for weight in model.parameters():
        torch.nn.init.normal_(weight, std=0.3)
    model = model.to(dtype)
    ids = torch.randint(0, 8, (2, 30))

    def scores():
        cache = cache_for(config, 2, 40, dtype=dtype, ahead=5)
        torch.nn.init.ones_(cache.layers[0][:, :, :5])
        out = []
        for start, end in ((0, 12), (12, 29)):
            positions = torch.arange(start, end).expand(2, -1)
            span = Span(cache, 0, start, end - start, rows=2)
            out.append(model.hidden(ids[:, start:end], positions, past=span))
        front = Front(cache, [29, 20])
        out.append(model.hidden(ids[:, 29:], torch.tensor([[29], [20]]), past=front))
        return torch.cat(out, dim=1).float()

    with torch.inference_mode():
        ours = scores()
        monkeypatch.setattr(seeing, "_suits", lambda held, qkv: False)
        assert float((scores() - ours).abs().max()) < tolerance


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    return load_local(tiny_checkpoint(tmp_path_factory.mktemp("tiny")), quantize="int4").model


def hidden(model):
    """Return the hidden states of a prompt of two rows, in two pieces, and of one step."""
    cache = cache_for(model.config, 2, 40)
    ids = torch.arange(3, 3 + 2 * 21).view(2, 21)
    out = []
    with torch.inference_mode():
        for start, end in ((0, 13), (13, 20)):
            positions = torch.arange(start, end).expand(2, -1)
            span = Span(cache, 0, start, end - start, rows=2)
            out.append(model.hidden(ids[:, start:end], positions, past=span))
        at = torch.tensor([[20], [20]])
        out.append(model.hidden(ids[:, 20:], at, past=Front(cache, [20, 20])))
    return torch.cat(out, dim=1)


@own
def test_all_blocks_at_once_give_the_same_bits(small, monkeypatch):
    stack = small.stack
    assert whole.plan_of(stack) is not None
    at_once = hidden(small)
    monkeypatch.setattr(seeing, "runs", lambda stack, x: None)
    assert torch.equal(hidden(small), at_once)


@own
def test_blocks_run_one_by_one_where_something_changed(small, monkeypatch):
    model = copy.deepcopy(small)
    stack = model.stack
    before, plan = hidden(model), whole.plan_of(stack)
    assert plan is not None
    assert whole.plan_of(stack) is plan
    calls = []
    hook = stack.layers[0].mlp.register_forward_hook(lambda *args: calls.append(1))
    assert whole.plan_of(stack) is None
    assert torch.equal(hidden(model), before)
    assert len(calls) == 3
    hook.remove()
    assert whole.plan_of(stack) is plan
    everywhere = register_module_forward_hook(lambda *args: None)
    assert whole.plan_of(stack) is None
    everywhere.remove()
    linear = stack.layers[1].mlp.dense_4h_to_h
    stack.layers[1].mlp.dense_4h_to_h = torch.nn.Sequential(linear)  # as an adapter would wrap it
    judged = []
    monkeypatch.setattr(
        whole, "_plain", lambda stack, real=whole._plain: judged.append(real(stack))
    )
    assert whole.plan_of(stack) is None
    assert torch.allclose(hidden(model), before, atol=1e-4)
    assert len(judged) == 1  # and not in every step
    monkeypatch.undo()
    stack.layers[1].mlp.dense_4h_to_h = linear
    norm = stack.layers[0].input_layernorm.weight
    norm.data = norm.data * 2  # a new address
    now = whole.plan_of(stack)
    assert now is not None
    assert now is not plan
    assert not torch.equal(hidden(model), before)
    norm.data = norm.data.double()
    assert whole.plan_of(stack) is None


@own
def test_what_a_plan_was_made_of_is_looked_after(small):
    stack = copy.deepcopy(small).stack
    block = stack.layers[0]
    linear = block.self_attention.query_key_value

    def replanned(change):
        before = whole.plan_of(stack)
        change()
        return whole.plan_of(stack) is not before

    assert not replanned(lambda: None)
    assert replanned(lambda: setattr(linear.own, "width", 32))
    assert replanned(lambda: setattr(linear, "own", copy.copy(linear.own)))
    assert replanned(lambda: setattr(linear, "bias", torch.ones(linear.out_features)))
    assert replanned(lambda: setattr(linear.bias, "data", linear.bias * 2))
    assert replanned(lambda: setattr(block.input_layernorm, "eps", 0.5))
    assert whole.plan_of(stack) is None  # norms differ
    block.input_layernorm.eps = block.post_attention_layernorm.eps
    assert whole.plan_of(stack) is not None
    block.mlp.forward = block.mlp.forward
    assert whole.plan_of(stack) is None
    del block.mlp.forward
    assert whole.plan_of(stack) is not None
    stack.layers.append(torch.nn.Identity())
    assert whole.plan_of(stack) is None


@own
def test_rotations_for_all_rows_at_once_are_those_of_each(small):
    cache = cache_for(small.config, 2, 8)
    qkv = random_qkv(small.config, 2, 3)
    turns = rotations(small.config, torch.arange(3)[None])
    each = torch.stack((turns[0], torch.zeros_like(turns[0]), turns[0]))[::2]
    got = [Span(cache, 0, 0, 3, rows=2).attend(0, qkv, given) for given in (turns, each)]
    assert torch.equal(*got)
    with pytest.raises(RuntimeError):
        Span(cache, 0, 0, 3, rows=2).attend(0, qkv, turns[:, :2])
