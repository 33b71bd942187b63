"""Our kernels against torch and against plain arithmetic."""

import os
import threading
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings, strategies as st
from quantised_parts import grouped, grouped_int8, near, need, normed, random

from glmkit.models.causal import project
from glmkit.models.tiny import tiny_checkpoint
from glmkit.runtime.kernels import (
    OwnKernel,
    has_own_kernel,
    multiply_own,
    suits_own,
)
from glmkit.runtime.linears import Int4Linear
from glmkit.runtime.loading import load_local
from glmkit.runtime.quantize import Int4Weight, Int8Weight, quantize_int4


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
