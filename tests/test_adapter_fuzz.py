"""Damaged and made-up adapters: a GlmkitError each, never a traceback."""

import json

import pytest
import torch
from hypothesis import HealthCheck, given, settings, strategies as st
from safetensors.torch import save
from tiny_adapters import config_of, lora, tensors_of

from glmkit import GlmkitError
from glmkit.models.tiny import tiny_checkpoint
from glmkit.runtime.adapters import read_adapter
from glmkit.runtime.fitting import fit_lora, fit_prefix
from glmkit.runtime.loading import load_local

pytestmark = pytest.mark.usefixtures("one_thread")

KEYS = (
    *("peft_type", "r", "lora_alpha", "target_modules", "rank_pattern", "alpha_pattern", "bias"),
    *("use_rslora", "use_dora", "enable_lora", "layers_to_transform", "modules_to_save"),
    *("base_model_name_or_path", "init_lora_weights", "layer_replication", "exclude_modules"),
)
pieces = st.sampled_from(
    ["(", ")", "+", "*", "[a-z._0-9]", "{9}", "{99999999999999999999}", "(?i)", "\\", ".", "q", "$"]
)
patterns = st.lists(pieces, max_size=9).map("".join) | st.integers(1, 4000).map(lambda n: "(" * n)
values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda each: (
        st.lists(each, max_size=3) | st.dictionaries(st.text(max_size=4), each, max_size=3)
    ),
    max_leaves=4,
)
many = settings(
    deadline=None, max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture]
)


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return load_local(tiny_checkpoint(tmp_path_factory.mktemp("base"), layout="chatglm3"))


@pytest.fixture(scope="module")
def files(model, tmp_path_factory):
    """Return the bytes of an adapter's files by name, and its config."""
    adapter = lora(model)
    folder = tmp_path_factory.mktemp("whole")
    torch.save(tensors_of(adapter), folder / "x.bin")
    prefix = {"layout": "chatglm3", "prefix": 2, "only_prefix": True, "files": "bin"}
    tiny_checkpoint(folder / "p", **prefix)
    return {
        "adapter_model.bin": (folder / "x.bin").read_bytes(),
        "adapter_model.safetensors": save(tensors_of(adapter)),
        "pytorch_model.bin": (folder / "p" / "pytorch_model.bin").read_bytes(),
    }, config_of(adapter)


def attempt(folder, model):
    """Read and fit what is in a folder; only our own errors may come."""
    try:
        adapter = read_adapter(folder)
        if adapter.kind == "prefix":
            fit_prefix(adapter, model.model)
        else:
            fit_lora(adapter, model.model)
    except GlmkitError as error:
        assert str(error) and "\n" not in str(error)


@many
@given(changes=st.dictionaries(st.sampled_from(KEYS), values, min_size=1, max_size=3))
def test_configurations(tmp_path, model, files, changes):
    name = "adapter_model.safetensors"
    (tmp_path / name).write_bytes(files[0][name])
    config = json.dumps(files[1] | changes)
    (tmp_path / "adapter_config.json").write_text(config, encoding="utf-8")
    attempt(tmp_path, model)


@pytest.mark.timeout(60)
@many
@given(
    name=st.sampled_from(["rank_pattern", "alpha_pattern", "exclude_modules", "target_modules"]),
    pattern=patterns,
    listed=st.booleans(),
)
def test_regular_expressions(tmp_path, model, files, name, pattern, listed):
    table = {pattern: 4} if name.endswith("pattern") else [pattern] if listed else pattern
    (tmp_path / "adapter_model.bin").write_bytes(files[0]["adapter_model.bin"])
    config = json.dumps(files[1] | {name: table})
    (tmp_path / "adapter_config.json").write_text(config, encoding="utf-8")
    attempt(tmp_path, model)


@many
@given(
    name=st.sampled_from(["adapter_model.bin", "adapter_model.safetensors", "pytorch_model.bin"]),
    start=st.floats(0, 1),
    garbage=st.binary(max_size=12),
    cut=st.booleans(),
)
def test_bytes(tmp_path, model, files, name, start, garbage, cut):
    for old in tmp_path.glob("*model*"):
        old.unlink()
    whole = files[0][name]
    at = int(start * len(whole))
    rest = b"" if cut else whole[at + len(garbage) :]
    (tmp_path / name).write_bytes(whole[:at] + garbage + rest)
    (tmp_path / "adapter_config.json").write_text(json.dumps(files[1]), encoding="utf-8")
    (tmp_path / "config.json").write_text('{"pre_seq_len": 2}', encoding="utf-8")
    attempt(tmp_path, model)


@many
@given(
    names=st.lists(
        st.sampled_from(["layers.0.x", "transformer.encoder.layers.0.mlp.dense_4h_to_h", "", "é"]),
        min_size=1,
        max_size=3,
    ),
    shapes=st.lists(st.lists(st.integers(0, 3), max_size=3), min_size=2, max_size=2),
    owner=st.sampled_from(["", ".default", "..", ".a.b"]),
)
def test_tensors(tmp_path, model, names, shapes, owner):
    tensors = {
        f"base_model.model.{name}.lora_{side}{owner}.weight": torch.ones(shape)
        for name in names
        for side, shape in zip("AB", shapes, strict=True)
    }
    torch.save(tensors, tmp_path / "x.pt")
    try:
        fit_lora(read_adapter(tmp_path / "x.pt", alpha=2), model.model)
    except GlmkitError as error:
        assert str(error) and "\n" not in str(error)
