"""What the tests of quantised matrices share."""

import pytest
import torch

from glmkit.models.glm import RmsNorm
from glmkit.runtime.kernels import (
    has_own_kernel,
)
from glmkit.runtime.quantize import Int8Weight, quantize_int4


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


def grouped_int8(rows, columns, seed=0):
    generator = torch.Generator().manual_seed(seed)
    integers = torch.randint(-128, 128, (rows, columns), dtype=torch.int8, generator=generator)
    return Int8Weight(integers, torch.rand(rows, columns // 32, generator=generator).half())


def grouped(weight, eight):
    return grouped_int8(*weight.shape) if eight else quantize_int4(weight)


def normed(weight):
    norm = RmsNorm(len(weight), 1e-5)
    norm.weight.data = weight
    return norm.requires_grad_(False)
