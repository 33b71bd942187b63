"""The official int4, int8 and int4-qe files: the reference's, and tiny ones made here."""

import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings, strategies as st
from safetensors.torch import load_file, save_file

from glmkit.errors import CheckpointError, UsageError
from glmkit.models.tiny import tiny_checkpoint
from glmkit.runtime import filling
from glmkit.runtime.kernels import has_own_kernel
from glmkit.runtime.linears import Int4Linear, Int8Linear, QuantizedEmbedding
from glmkit.runtime.loading import load_local
from glmkit.runtime.official import from_official
from glmkit.runtime.quantize import Int4Weight, Int8Weight

pytestmark = pytest.mark.usefixtures("one_thread")

IDS = torch.tensor([[5, 60, 7, 100]])
LINEARS = ("query_key_value", "dense", "dense_h_to_4h", "dense_4h_to_h")
REFERENCE = [
    "chatglm-6b-tiny-int4",
    "chatglm-6b-tiny-int8",
    "chatglm-6b-tiny-int4-qe",
    "chatglm2-6b-tiny-int4",
    "chatglm2-6b-tiny-int8",
]


def rounded(weight, bits):
    """Round as the original code does; return integers and scales."""
    scale = (weight.abs().amax(-1) / (2 ** (bits - 1) - 1)).half()
    step = torch.where(scale > 0, scale, 1).float()[:, None]
    return torch.round(weight / step).clamp(-(2 ** (bits - 1)), 127), scale


def packed(integers, bits):
    """Write integers as official files hold them, one byte at a time."""
    if bits == 8:
        return integers.to(torch.int8)
    rows = [
        [((int(a) & 15) << 4 | int(b) & 15) for a, b in zip(row[::2], row[1::2], strict=True)]
        for row in integers.tolist()
    ]
    return torch.tensor(rows, dtype=torch.uint8).view(torch.int8)


def random(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def official(folder, bits, *, layout="chatglm", embeddings=False):
    """Write a tiny official checkpoint; return the folder and its twin of ordinary numbers."""
    twin = tiny_checkpoint(folder / "twin", layout=layout, dtype=torch.float16)
    found, exact = load_file(twin / "model.safetensors"), {}
    quantised = dict(found)
    for key, tensor in found.items():
        module = key.split(".")[-2]
        if not key.endswith(".weight") or module not in (
            (*LINEARS, "word_embeddings") if embeddings else LINEARS
        ):
            continue
        integers, scale = rounded(tensor.float(), bits)
        quantised[key], quantised[f"{key}_scale"] = packed(integers, bits), scale
        exact[key] = integers * scale.float()[:, None]
    raw = json.loads((twin / "config.json").read_text())
    raw |= {"quantization_bit": bits, "quantization_embeddings": embeddings}
    ours = folder / "official"
    ours.mkdir()
    (ours / "config.json").write_text(json.dumps(raw))
    torch.save(quantised, ours / "pytorch_model.bin")
    save_file({**{k: t.float() for k, t in found.items()}, **exact}, twin / "model.safetensors")
    return ours, twin


def changed(folder, change, **config):
    file = folder / "pytorch_model.bin"
    found = torch.load(file, weights_only=True)
    change(found)
    torch.save(found, file)
    raw = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(raw | config))


def layer(found, leaf="weight"):
    return next(key for key in found if key.endswith(f"dense_h_to_4h.{leaf}"))


@pytest.mark.parametrize("dtype", ["float32", None])
@pytest.mark.parametrize("name", REFERENCE)
def test_reference_files_give_the_original_results(shared_reference, name, dtype):
    if dtype is None and not has_own_kernel():
        pytest.skip("without our kernel the default multiplies in bfloat16")
    arrays = np.load(shared_reference / "expected" / "quant.npz")
    model = load_local(shared_reference / "checkpoints" / name, dtype=dtype)
    ids = torch.from_numpy(arrays[f"{name}.input_ids"])
    expected = torch.from_numpy(arrays[f"{name}.logits"])
    torch.testing.assert_close(model.logits(ids), expected, rtol=0, atol=1e-4)
    model.settings = replace(model.settings, stop_ids=frozenset())
    generated = arrays[f"{name}.generated"][0, ids.shape[1] :].tolist()
    assert model.generate_ids(ids[0].tolist(), len(generated)) == generated


@pytest.mark.parametrize("name", REFERENCE)
def test_reference_matrices_expand_to_the_original_numbers(shared_reference, name):
    arrays = np.load(shared_reference / "expected" / "quant.npz")
    folder = shared_reference / "checkpoints" / name
    found = torch.load(folder / "pytorch_model.bin", weights_only=True)
    bits = json.loads((folder / "config.json").read_text())["quantization_bit"]
    keys = [key for key in arrays.files if key.startswith(f"{name}.dequant.")]
    assert keys
    for key in keys:
        stem = key.removeprefix(f"{name}.dequant.").removesuffix(".weight")
        parts = found[f"{stem}.weight"], found[f"{stem}.weight_scale"]
        weight = from_official(stem, *parts, arrays[key].shape, bits)
        assert np.array_equal(weight.expand().numpy(), arrays[key]), stem


@settings(max_examples=40, deadline=None)
@given(
    rows=st.integers(1, 40),
    pairs=st.integers(1, 80),
    bits=st.sampled_from([4, 8]),
    scale=st.floats(2.0**-24, 60_000),
    kind=st.sampled_from([torch.float16, torch.bfloat16, torch.float32]),
)
def test_no_number_changes(rows, pairs, bits, scale, kind):
    generator = torch.Generator().manual_seed(rows * 100 + pairs)
    most = 2 ** (bits - 1)
    integers = torch.randint(-most, most, (rows, 2 * pairs), generator=generator)
    scales = (torch.rand(rows, generator=generator) * scale).to(kind)
    shape = (rows, 2 * pairs)
    weight = from_official("a", packed(integers, bits), scales, shape, bits)
    assert weight.shape == shape
    expected = integers.float() * scales.float()[:, None]
    assert torch.equal(weight.expand(), expected)


@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize("tokens", [1, 3, 60])
def test_our_kernel_keeps_single_precision(bits, tokens):
    if not has_own_kernel():
        pytest.skip("the extension is not built, or the processor lacks AVX2")
    integers, scale = rounded(random(136, 96), bits)
    weight = from_official("a", packed(integers, bits), scale, (136, 96), bits)
    x = random(tokens, 96, seed=1) * torch.logspace(-4, 3, 96)
    kind = Int4Linear if isinstance(weight, Int4Weight) else Int8Linear
    linear = kind(weight, kernel="own", fine=True)
    exact = x.double() @ (integers.double() * scale.double()[:, None]).t()
    size = x.norm(dim=1)[:, None] * weight.expand().norm(dim=1)
    assert float(((linear(x) - exact).abs() / size).max()) < 1e-6
    rough = kind(weight, kernel="own")(x)
    assert float(((rough - exact).abs() / size).max()) > 1e-6, "rounded to 16 bits"
    assert torch.equal(linear.matrix.expand(), weight.expand())


@pytest.mark.parametrize("layout", ["chatglm", "chatglm2"])
@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize("dtype", ["float32", None])
def test_official_files_are_their_integers(tmp_path, layout, bits, dtype):
    if dtype is None and not has_own_kernel():
        pytest.skip("without our kernel the default multiplies in bfloat16")
    folder, twin = official(tmp_path, bits, layout=layout)
    exact = load_local(twin, dtype="float32")
    model = load_local(folder, dtype=dtype)
    ids = prompt(exact)
    assert_same(model.logits(ids), exact.logits(ids))
    row = ids[0].tolist()
    assert model.generate_ids(row, 12) == exact.generate_ids(row, 12)


def assert_same(got, expected):
    """Compare scores to what single precision leaves; tiny models amplify it."""
    torch.testing.assert_close(got, expected, rtol=0, atol=5e-5 * float(expected.std()))


def prompt(model):
    """Return a row that the model answers; generation 1 wants its blank and its start."""
    config = model.config
    end = [config.gmask, config.bos] if hasattr(config, "gmask") else []
    return torch.tensor([[5, 60, 7, 100, *end]])


@pytest.mark.parametrize("dtype", ["float32", None])
def test_quantised_embeddings_serve_as_the_head_too(tmp_path, dtype):
    if dtype is None and not has_own_kernel():
        pytest.skip("without our kernel the default multiplies in bfloat16")
    folder, twin = official(tmp_path, 4, embeddings=True)
    exact, model = load_local(twin, dtype="float32"), load_local(folder, dtype=dtype)
    ids = prompt(exact)
    assert_same(model.logits(ids), exact.logits(ids))


def test_by_default_the_matrices_stay_in_integers(tmp_path):
    if not has_own_kernel():
        pytest.skip("the extension is not built, or the processor lacks AVX2")
    folder, _ = official(tmp_path, 4, embeddings=True)
    model = load_local(folder).model
    assert isinstance(model.transformer.word_embeddings, QuantizedEmbedding)
    assert isinstance(model.lm_head, Int4Linear)
    block = model.transformer.layers[0]
    for linear in (block.attention.dense, block.mlp.dense_h_to_4h):
        assert isinstance(linear, Int4Linear)
        assert linear.own is not None


@pytest.mark.parametrize("bits", [4, 8])
def test_what_a_device_without_kernels_does(tmp_path, monkeypatch, bits):
    """Large models keep their integers there, and expand a matrix each time it is used."""
    folder, twin = official(tmp_path, bits)
    exact = load_local(twin, dtype="float32")
    for name in ("has_own_kernel", "has_int4_kernel"):
        monkeypatch.setattr(filling, name, lambda: False)
    for name in ("int4_kernel", "int8_kernel"):
        monkeypatch.setattr(filling, name, lambda weight: None)
    monkeypatch.setattr(filling, "_EXPAND_UP_TO", 0)
    monkeypatch.setattr(filling, "_KEEP_UP_TO", 0)
    model = load_local(folder)
    linear = model.model.transformer.layers[0].mlp.dense_h_to_4h
    assert isinstance(linear.matrix, Int4Weight | Int8Weight)
    ids = prompt(exact)
    assert_same(model.logits(ids), exact.logits(ids))
    assert linear._kept is None
    half = type(linear)(linear.matrix, kernel=None)(torch.ones(1, 64, dtype=torch.float16))
    assert half.dtype == torch.float16


@pytest.mark.gpu
@pytest.mark.parametrize("bits", [4, 8])
def test_official_files_run_on_cuda(tmp_path, monkeypatch, bits):
    if not torch.cuda.is_available():
        pytest.skip("no CUDA device")
    monkeypatch.setattr(filling, "_EXPAND_UP_TO", 0)
    folder, twin = official(tmp_path, bits)
    exact, model = load_local(twin, device="cpu"), load_local(folder, device="cuda")
    linear = model.model.transformer.layers[0].mlp.dense_h_to_4h
    integers = linear.matrix.nibbles if bits == 4 else linear.matrix.integers
    assert integers.device.type == "cuda"
    ids = prompt(exact)
    difference = (model.logits(ids).cpu() - exact.logits(ids)).norm()
    assert difference < 0.02 * exact.logits(ids).norm()


def test_bits_may_be_told_by_the_shapes_alone(tmp_path):
    folder, twin = official(tmp_path, 4)
    changed(folder, lambda found: None, quantization_bit=None)
    model = load_local(folder, dtype="float32")
    ids = prompt(model)
    exact = load_local(twin, dtype="float32").logits(ids)
    assert_same(model.logits(ids), exact)


def test_rounding_to_other_bits_is_refused(tmp_path):
    folder, _ = official(tmp_path, 8)
    with pytest.raises(UsageError, match="quantised to 8 bits already and stays so"):
        load_local(folder, quantize="int4")
    same = load_local(folder, quantize="int8")
    assert isinstance(same.model.get_submodule(same.model.HEAD), Int8Linear)


@pytest.mark.parametrize("bits", [3, -4, True, "4", 4.0, [4]])
def test_other_bits_are_refused(tmp_path, bits):
    folder, _ = official(tmp_path, 4)
    changed(folder, lambda found: None, quantization_bit=bits)
    with pytest.raises(CheckpointError, match=r"quantization_bit is .*4 or 8"):
        load_local(folder)


def cut_scale(found):
    key = layer(found, "weight_scale")
    found[key] = found[key][:-1].clone()


def square_scale(found):
    key = layer(found, "weight_scale")
    found[key] = found[key].view(8, -1).clone()


def whole_scale(found):
    key = layer(found, "weight_scale")
    found[key] = torch.ones(len(found[key]), dtype=torch.int64)


def no_scale(found):
    del found[layer(found, "weight_scale")]


def no_scales(found):
    for key in [each for each in found if each.endswith("_scale")]:
        del found[key]


def short_rows(found):
    found[layer(found)] = found[layer(found)][:-8].clone()


def odd_width(found):
    found[layer(found)] = found[layer(found)][:, :-1].clone()


def floats(found):
    found[layer(found)] = found[layer(found)].float()


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (cut_scale, "weight_scale is .* expected one scale for each of the"),
        (whole_scale, "weight_scale.*int64"),
        (square_scale, "do not fit each other"),
        (no_scale, "dense_h_to_4h.weight (has shape|holds int8 and there is no)"),
        (no_scales, "hold no scales"),
        (short_rows, "belong to different models"),
        (odd_width, "belong to different models"),
        (floats, "they hold torch.float32"),
    ],
)
@pytest.mark.parametrize("bits", [4, 8])
def test_damaged_files_are_refused(tmp_path, change, said, bits):
    folder, _ = official(tmp_path, bits)
    changed(folder, change)
    with pytest.raises(CheckpointError, match=said):
        load_local(folder)


@pytest.mark.parametrize(("stored", "claimed"), [(4, 8), (8, 4)])
def test_bits_that_contradict_the_shapes_are_refused(tmp_path, stored, claimed):
    folder, _ = official(tmp_path, stored)
    changed(folder, lambda found: None, quantization_bit=claimed)
    with pytest.raises(CheckpointError, match=f"of {stored} bits.*quantization_bit {claimed}"):
        load_local(folder)


@pytest.mark.parametrize(("how", "tolerance"), [("int4", 0.5), ("int8", 0.1)])
def test_generation_1_is_quantised_while_loading(tmp_path, how, tolerance):
    folder = tiny_checkpoint(tmp_path, layout="chatglm")
    exact, model = load_local(folder, dtype="float32"), load_local(folder, quantize=how)
    block = model.model.transformer.layers[0]
    linear = block.mlp.dense_4h_to_h
    assert isinstance(linear, Int4Linear if how == "int4" else Int8Linear)
    assert (linear.own is not None) == has_own_kernel()
    assert linear.bias is not None
    assert isinstance(model.model.lm_head, Int8Linear)
    ids = prompt(exact)
    got, expected = model.logits(ids), exact.logits(ids)
    assert float((got - expected).norm() / expected.norm()) < tolerance
    assert len(model.generate_ids(ids[0].tolist(), 6)) == 6
