import pytest
import torch
from hypothesis import given, settings, strategies as st
from quantised_parts import grouped_int8, need, random, relative

from glmkit.errors import UsageError
from glmkit.models.causal import project
from glmkit.models.tiny import tiny_checkpoint
from glmkit.runtime import filling, kernels
from glmkit.runtime.kernels import (
    OwnKernel,
    has_int4_kernel,
    has_int8_kernel,
    has_own_kernel,
    int4_kernel,
    int8_kernel,
    suits_own,
)
from glmkit.runtime.linears import Int4Linear, Int8Linear, QuantizedEmbedding
from glmkit.runtime.loading import load_local
from glmkit.runtime.quantize import Int4Weight, Int8Weight, quantize_int4, quantize_int8


def test_int4_rounds_to_half_a_step():
    weight = random(64, 96)
    groups = weight.view(64, -1, 32)
    step = (groups.amax(-1) - groups.amin(-1)) / 15
    error = (quantize_int4(weight).expand() - weight).view(64, -1, 32).abs().amax(-1)
    assert bool((error <= 0.51 * step + 1e-2).all())


@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 10_000), scale=st.floats(1e-3, 30))
def test_int4_of_int4_is_the_same(seed, scale):
    once = quantize_int4(random(8, 64, seed=seed) * scale).expand()
    twice = quantize_int4(once).expand()
    torch.testing.assert_close(twice, once, rtol=2e-3, atol=2e-3 * scale)


def test_int4_survives_constant_and_zero_groups():
    weight = torch.cat((torch.zeros(4, 32), torch.full((4, 32), 3.0)), dim=1)
    assert torch.equal(quantize_int4(weight).expand(), weight)


def test_nibbles_lie_as_documented():
    weight = Int4Weight(
        torch.tensor([[at | ((15 - at) << 4) for at in range(16)]], dtype=torch.uint8),
        torch.ones(1, 1, dtype=torch.float16),
        torch.zeros(1, 1, dtype=torch.float16),
    )
    assert weight.expand()[0].tolist() == [*range(16), *range(15, -1, -1)]


def test_int8_rounds_to_half_a_step():
    weight = random(16, 50)
    got = quantize_int8(weight)
    step = weight.abs().amax(-1, keepdim=True) / 127
    assert bool(((got.expand() - weight).abs() <= 0.5003 * step).all()), (
        "half a step, itself rounded"
    )


def test_grouped_int8_becomes_one_scale_per_row():
    grouped = Int8Weight(
        torch.randint(-127, 128, (5000, 64), dtype=torch.int8), torch.rand(5000, 2).half()
    )
    single = grouped.per_row()
    assert single.scale.shape == (5000, 1)
    assert relative(single.expand(), grouped.expand()) < 0.01
    assert single.per_row() is single


@pytest.mark.parametrize("tokens", [1, 3, 200])
@pytest.mark.parametrize("kernel", [None, "torch", "own"])
def test_int4_linear_multiplies(tokens, kernel):
    need(kernel, has_int4_kernel)
    weight, bias = quantize_int4(random(128, 96)), random(128, seed=2)
    x = random(2, tokens, 96, seed=1)
    got = Int4Linear(weight, bias, kernel=kernel)(x)
    assert got.dtype == torch.float32
    assert relative(got, x @ weight.expand().t() + bias) < (0.01 if kernel else 1e-5)


@pytest.mark.parametrize("tokens", [1, 200])
@pytest.mark.parametrize("kernel", [None, "torch"])
def test_int8_linear_multiplies(tokens, kernel):
    need(kernel, has_int8_kernel)
    weight, bias = quantize_int8(random(70, 96)), random(70, seed=2)
    x = random(tokens, 96, seed=1)
    got = Int8Linear(weight, bias, kernel=kernel)(x)
    assert relative(got, x @ weight.expand().t() + bias) < (0.01 if kernel else 1e-5)


def test_a_kept_matrix_gives_the_same(monkeypatch):
    need("torch", has_int4_kernel)
    weight = quantize_int4(random(128, 96))
    linear = Int4Linear(weight, kernel="torch", keep=True)
    long, short = random(200, 96, seed=1), random(20, 96, seed=2)
    before = linear(short)
    assert torch.equal(linear(long), linear(long))
    monkeypatch.setattr(Int4Weight, "expand", None)
    assert relative(linear(short), before) < 0.01
    assert torch.equal(linear(short), short @ linear._kept.t())


def test_our_kernel_needs_no_expanded_matrix(monkeypatch):
    need("own", has_own_kernel)
    weight, bias = quantize_int4(random(128, 96)), random(128, seed=2)
    linear = Int4Linear(weight, bias, kernel="own", keep=True)
    monkeypatch.setattr(OwnKernel, "expand", None)
    x = random(300, 96, seed=1)
    assert torch.equal(linear(x)[7:8], linear(x[7:8]))
    assert linear(x[:0]).shape == (0, 128)


def test_an_odd_number_of_rows_takes_the_slow_way():
    weight = quantize_int4(random(40, 64))
    x = random(1, 64, seed=1)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(kernels, "has_own_kernel", lambda: False)
        assert int4_kernel(weight) is None
    torch.testing.assert_close(Int4Linear(weight, kernel=None)(x), x @ weight.expand().t())


@pytest.mark.parametrize("kernel", ["own", "torch"])
def test_gradients_of_tokens_go_through_a_quantised_layer(kernel):
    need(kernel, has_int4_kernel)
    weight = quantize_int4(random(64, 64))
    linear, x = Int4Linear(weight, kernel=kernel), random(2, 64).requires_grad_()
    for out in (linear(x), project(linear, x, gated=False, onto=random(2, 64))):
        (grad,) = torch.autograd.grad(out.sum(), x)
        torch.testing.assert_close(grad, weight.expand().sum(0).expand(2, -1))


def test_matrices_that_do_not_fill_blocks_are_left_to_torch():
    assert not suits_own(quantize_int4(random(70, 64)))


def test_without_our_kernel_torchs_is_taken(monkeypatch):
    weight = quantize_int4(random(128, 64))
    monkeypatch.setattr(kernels, "_kernels", None)
    assert not has_own_kernel()
    assert int4_kernel(weight) == ("torch" if has_int4_kernel() else None)
    assert int8_kernel(grouped_int8(64, 64)) == ("torch" if has_int8_kernel() else None)


@pytest.mark.parametrize("round_off", [quantize_int4, quantize_int8])
def test_a_quantised_table_gives_the_rows_asked_for(round_off):
    weight = round_off(random(50, 64))
    ids = torch.tensor([[3, 49], [0, 3]])
    found = QuantizedEmbedding(weight, torch.float32)(ids)
    assert torch.equal(found, weight.expand()[ids])


def test_a_missing_operator_is_noticed(monkeypatch):
    def absent(*_):
        raise NotImplementedError("not on this processor")

    monkeypatch.setattr(kernels, "multiply_int4", absent)
    has_int4_kernel.cache_clear()
    assert not has_int4_kernel()
    monkeypatch.setattr(kernels, "multiply_int4", lambda x, packed, scales: x[:, :1].repeat(1, 64))
    has_int4_kernel.cache_clear()
    assert not has_int4_kernel(), "a kernel that gives wrong numbers counts as missing"
    monkeypatch.undo()
    has_int4_kernel.cache_clear()


@pytest.mark.parametrize(("how", "tolerance"), [("int4", 0.3), ("int8", 0.05)])
def test_a_model_quantised_while_loading_stays_close(tmp_path, how, tolerance):
    folder = tiny_checkpoint(tmp_path)
    ids = torch.tensor([[10, 20, 30, 40]])
    exact = load_local(folder).logits(ids)
    assert relative(load_local(folder, quantize=how).logits(ids), exact) < tolerance


def test_quantised_models_answer_without_kernels(tmp_path, monkeypatch):
    folder = tiny_checkpoint(tmp_path)
    fast = load_local(folder, quantize="int4")
    monkeypatch.setattr(filling, "int4_kernel", lambda weight: None)
    monkeypatch.setattr(filling, "int8_kernel", lambda weight: None)
    slow = load_local(folder, quantize="int4")
    ids = torch.tensor([[10, 20, 30, 40]])
    assert relative(slow.logits(ids), fast.logits(ids)) < 0.03
    assert len(slow.generate_ids([5, 6, 7], 5)) <= 5


def test_unknown_quantisation_is_refused(tmp_path):
    with pytest.raises(UsageError, match="int4, int8"):
        load_local(tiny_checkpoint(tmp_path), quantize="int3")
