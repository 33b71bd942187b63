import os
import threading
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings, strategies as st

from glmkit.errors import UsageError
from glmkit.models.causal import project
from glmkit.models.glm import RmsNorm
from glmkit.models.tiny import tiny_checkpoint
from glmkit.runtime import filling, kernels
from glmkit.runtime.kernels import (
    OwnKernel,
    has_int4_kernel,
    has_int8_kernel,
    has_own_kernel,
    int4_kernel,
    int8_kernel,
    multiply_own,
    suits_own,
)
from glmkit.runtime.linears import Int4Linear, Int8Linear, QuantizedEmbedding
from glmkit.runtime.loading import load_local
from glmkit.runtime.quantize import Int4Weight, Int8Weight, quantize_int4, quantize_int8


def random(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def near(got, expected):
    return bool((got - expected).abs().max() <= 3e-4 * expected.abs().max())


def need(kernel, torch_has):
    if kernel == "own" and not has_own_kernel():
        pytest.skip("the extension is not built, or the processor lacks AVX2")
    if kernel == "torch" and not torch_has():
        pytest.skip("torch has no such operator for this processor")


def relative(got, expected):
    return float((got - expected).norm() / expected.norm())


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


def grouped_int8(rows, columns, seed=0):
    generator = torch.Generator().manual_seed(seed)
    integers = torch.randint(-128, 128, (rows, columns), dtype=torch.int8, generator=generator)
    return Int8Weight(integers, torch.rand(rows, columns // 32, generator=generator).half())


def grouped(weight, eight):
    return grouped_int8(*weight.shape) if eight else quantize_int4(weight)


def furthest(x, weight, width):
    """Return how far the product of rounded tokens may be from the exact one, (M, N).

    Each number of a group is off by half a step, which is its largest number by so many; the sums
    of a group are off by single precision.
    """
    steps = {8: 127, 16: 32767, 32: 32767 * 65534}[width]
    groups = x.double().abs().view(len(x), -1, 32)
    most = groups.amax(-1)
    matrix = weight.expand().double().abs().view(weight.shape[0], -1, 32)
    rounded = (most / (2 * steps)) @ matrix.sum(-1).t() * 1.01
    small = torch.finfo(torch.float32).eps * (len(most[0]) + 4)
    # Nibbles are added up before the minimum is taken off.
    high = matrix.amax(-1) if isinstance(weight, Int8Weight) else 32 * weight.scale.double() * 15
    low = 0 if isinstance(weight, Int8Weight) else 32 * weight.minimum.double().abs()
    return rounded + small * (most @ (32 * high + low).t())


MATRICES = {"blocks": st.integers(1, 40), "groups": st.integers(1, 21), "eight": st.booleans()}


@settings(max_examples=30, deadline=None)
@given(
    **MATRICES,
    tokens=st.integers(1, 9),
    width=st.sampled_from((8, 16, 32)),
    seed=st.integers(0, 1000),
    spread=st.floats(0, 3),
)
def test_our_kernel_multiplies_matrices_of_any_size(
    blocks, groups, eight, tokens, width, seed, spread
):
    need("own", has_own_kernel)
    rows, columns = 8 * blocks, groups * 32
    weight = grouped(random(rows, columns, seed=seed), eight)
    x = random(tokens, columns, seed=seed + 1) * torch.logspace(-spread, spread, columns)
    got, expected = multiply_own(x, weight, width=width), x.double() @ weight.expand().double().t()
    bound = furthest(x, weight, max(width, 16) if eight else width)
    assert bool(((got - expected).abs() <= bound).all())


@settings(max_examples=40, deadline=None)
@given(
    **MATRICES,
    tokens=st.integers(2, 200),
    width=st.sampled_from((8, 16, 32)),
    around=st.sampled_from(("nothing", "norm", "gate", "sum")),
    threads=st.sampled_from((1, 2, 3)),
    data=st.data(),
)
def test_a_token_alone_and_among_others_gives_the_same_bits(
    blocks, groups, eight, tokens, width, around, threads, data
):
    need("own", has_own_kernel)
    rows, columns = 16 * blocks, groups * 32
    kernel = OwnKernel(grouped(random(rows, columns), eight), width=width)
    kernel.threads = threads
    x, onto = random(tokens, columns, seed=1), random(tokens, rows, seed=2)

    def multiplied(part):
        if around == "sum":
            return kernel(x[part].contiguous(), onto=onto[part].clone())
        norm = random(1, columns, seed=3)[0] if around == "norm" else None
        return kernel(x[part].contiguous(), norm=norm, eps=1e-5, gated=around == "gate")

    whole = multiplied(slice(None))
    start = data.draw(st.integers(0, tokens - 1))
    end = data.draw(st.integers(start + 1, tokens))
    assert torch.equal(multiplied(slice(start, end)), whole[start:end])
    assert torch.equal(multiplied(slice(start, start + 1)), whole[start : start + 1])


@pytest.mark.parametrize("tokens", [1, 70])
@pytest.mark.parametrize("width", [8, 16, 32])
@pytest.mark.parametrize("sign", [1, -1])
def test_the_largest_integers_do_not_overflow(tokens, width, sign):
    need("own", has_own_kernel)
    nibbles = torch.full((24, 32), 255, dtype=torch.uint8)
    ones, zeros = torch.ones(24, 2).half(), torch.zeros(24, 2).half()
    x = torch.full((tokens, 64), 127.0 * sign)
    got = multiply_own(x, Int4Weight(nibbles, ones, zeros), width=width)
    torch.testing.assert_close(got, torch.full((tokens, 24), 64 * 15 * 127.0 * sign))
    eight = Int8Weight(torch.full((24, 64), -128, dtype=torch.int8), ones)
    got = multiply_own(x, eight, width=width)
    torch.testing.assert_close(got, torch.full((tokens, 24), -128 * 64 * 127.0 * sign))


@pytest.mark.parametrize("width", [8, 16, 32])
@pytest.mark.parametrize("damage", [float("nan"), float("inf"), -float("inf")])
def test_our_kernel_keeps_zeros_and_shows_damage_where_it_is(width, damage):
    need("own", has_own_kernel)
    weight = quantize_int4(random(72, 64))
    assert torch.equal(multiply_own(torch.zeros(1, 64), weight, width=width), torch.zeros(1, 72))
    assert torch.isfinite(multiply_own(torch.full((1, 64), 1e-39), weight, width=width)).all()
    for kind in (weight, grouped_int8(72, 64)):
        x = random(70, 64)
        expected = multiply_own(x, kind, width=width)
        x[33, 40] = damage
        got = multiply_own(x, kind, width=width)
        assert got[33].isnan().all()
        rest = torch.arange(70) != 33
        assert torch.equal(got[rest], expected[rest])


@pytest.mark.parametrize("value", [0.0, -0.0, 1e-20, -80.0, 80.0, -100.0, 100.0, float("nan")])
def test_gates_are_as_torch_computes_them(value):
    need("own", has_own_kernel)
    weight = torch.zeros(16, 64)
    weight[:8, 0], weight[8:, 32] = 1, 1
    kernel = OwnKernel(Int8Weight(weight.to(torch.int8), torch.ones(16, 1).half()), width=32)
    x = torch.zeros(1, 64)
    x[0, 0], x[0, 32] = value, 1
    expected = torch.nn.functional.silu(torch.tensor(value)).expand(1, 8)
    torch.testing.assert_close(
        kernel(x, gated=True), expected, equal_nan=True, rtol=1e-6, atol=1e-30
    )


def test_tokens_of_most_matrices_are_rounded_to_8_bits(tmp_path):
    need("own", has_own_kernel)
    folder = tiny_checkpoint(tmp_path)
    model = load_local(folder, quantize="int4").model
    widths = {
        stem.split("layers.")[1]: each.own.width
        for stem, each in model.named_modules()
        if isinstance(each, Int4Linear)
    }
    last = str(model.config.layers - 1)
    assert set(widths.values()) == {8, 16}
    for stem, width in widths.items():
        sensitive = stem.endswith("query_key_value") or stem.startswith(last)
        assert width == (16 if sensitive else 8), stem


@pytest.mark.parametrize("make", [quantize_int4, lambda weight: grouped_int8(*weight.shape)])
@pytest.mark.parametrize("tokens", [1, 3])
def test_what_surrounds_a_matrix_is_the_same_in_one_call(make, tokens):
    need("own", has_own_kernel)
    weight = make(random(96, 64))
    kernel, x, norm = OwnKernel(weight), random(tokens, 64, seed=2), random(1, 64, seed=3)[0]
    matrix = weight.expand()
    normed = torch.nn.functional.rms_norm(x, (64,), norm, 1e-5) @ matrix.t()
    assert near(kernel(x, norm=norm, eps=1e-5), normed)
    gate, value = (x @ matrix.t()).chunk(2, dim=-1)
    gated = torch.nn.functional.silu(gate) * value
    assert near(kernel(x, gated=True), gated)
    stream = random(tokens, 96, seed=4)
    expected = stream + x @ matrix.t()
    assert kernel(x, onto=stream) is stream
    assert near(stream, expected)


def test_numbers_with_gaps_are_multiplied_as_they_are():
    need("own", has_own_kernel)
    linear = Int4Linear(quantize_int4(random(96, 64)), kernel="own")
    x, stream, norm = random(3, 128)[:, ::2], random(3, 192, seed=1)[:, ::2], random(64, seed=2)
    whole = project(linear, x.contiguous(), norm=normed(norm), onto=stream.contiguous())
    assert near(project(linear, x, norm=normed(norm), onto=stream), whole)
    wide = torch.stack((norm, norm), dim=-1)[:, 0]
    assert linear.project(x.contiguous(), wide, 1e-5, False, None) is None
    assert linear.project(x.contiguous(), norm.double(), 1e-5, False, None) is None


def normed(weight):
    norm = RmsNorm(len(weight), 1e-5)
    norm.weight.data = weight
    return norm.requires_grad_(False)


def test_our_kernel_refuses_what_it_would_misread():
    need("own", has_own_kernel)
    kernel, x = OwnKernel(quantize_int4(random(16, 64))), random(2, 64)
    bad = [
        {"x": random(2, 32)},
        {"x": random(64, 2).t()},
        {"x": x.double()},
        {"x": x.to("meta")},
        {"x": x, "norm": random(32)},
        {"x": x, "onto": random(2, 8)},
    ]
    for each in bad:
        with pytest.raises(ValueError, match="contiguous float32"):
            kernel(**each)


def test_a_matrix_whose_minima_are_finer_is_left_to_torch():
    need("own", has_own_kernel)
    weight = quantize_int4(random(16, 64))
    assert suits_own(weight)
    assert not suits_own(replace(weight, minimum=weight.minimum.float()))


@pytest.mark.parametrize("kernel", ["own", "torch"])
def test_gradients_of_tokens_go_through_a_quantised_layer(kernel):
    need(kernel, has_int4_kernel)
    weight = quantize_int4(random(64, 64))
    linear, x = Int4Linear(weight, kernel=kernel), random(2, 64).requires_grad_()
    for out in (linear(x), project(linear, x, gated=False, onto=random(2, 64))):
        (grad,) = torch.autograd.grad(out.sum(), x)
        torch.testing.assert_close(grad, weight.expand().sum(0).expand(2, -1))


@pytest.mark.skipif(not hasattr(os, "fork"), reason="forks of POSIX")
def test_a_fork_multiplies_while_its_parent_does():
    need("own", has_own_kernel)
    kernel, x = OwnKernel(quantize_int4(random(512, 256))), random(2, 256)
    kernel.threads = 2
    expected, stop = kernel(x), threading.Event()
    busy = threading.Thread(target=lambda: [kernel(x) for _ in iter(stop.is_set, True)])
    busy.start()
    try:
        for _ in range(5):
            child = os.fork()
            if not child:
                os._exit(not all(torch.equal(kernel(x), expected) for _ in range(20)))
            assert os.waitpid(child, 0)[1] == 0
    finally:
        stop.set()
        busy.join()


def test_any_number_of_threads_gives_the_same():
    need("own", has_own_kernel)
    kernel, x = OwnKernel(quantize_int4(random(2048, 512))), random(8, 512)
    expected = kernel(x)
    for threads in (8, 2, 64, 1 << 20, 0, -1):
        kernel.threads = threads
        assert torch.equal(kernel(x), expected)


def test_our_kernel_is_right_with_many_callers_at_once():
    need("own", has_own_kernel)
    kernels = [OwnKernel(quantize_int4(random(512, 256, seed=each))) for each in range(4)]
    x = random(2, 256)
    expected = [kernel(x) for kernel in kernels]

    def call(number):
        return all(torch.equal(kernels[number](x), expected[number]) for _ in range(200))

    with ThreadPoolExecutor(4) as pool:
        assert all(pool.map(call, range(4)))


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
