"""Adapters that must not load: each gets one clear line, and the model stays as it was."""

import json
import pickle

import pytest
import torch
from safetensors.torch import save_file
from tiny_adapters import FUSED, config_of, lora, tensors_of, write, written
from torch import nn

from glmkit import CheckpointError, UnknownNameError, UsageError
from glmkit.models.tiny import tiny_checkpoint
from glmkit.runtime.adapters import read_adapter
from glmkit.runtime.loading import load_local

pytestmark = pytest.mark.usefixtures("one_thread")

A0 = f"base_model.model.transformer.encoder.layers.0.self_attention.{FUSED}.lora_A.weight"


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return load_local(tiny_checkpoint(tmp_path_factory.mktemp("base"), layout="chatglm3"))


@pytest.fixture(scope="module")
def adapter(model):
    return lora(model)


@pytest.fixture
def refused(model):
    """Return a check that loading fails with a message and leaves the model alone."""

    def check(path, says, error=CheckpointError, **kwargs):
        before = {name: id(each) for name, each in model.model.named_modules()}
        with pytest.raises(error, match=says) as caught:
            model.load_adapter(path, **kwargs)
        assert "\n" not in str(caught.value)
        assert {name: id(each) for name, each in model.model.named_modules()} == before
        assert not model.adapters and not model.active_adapters

    return check


CONFIGS = [
    ({"use_dora": True}, "use_dora True, and .* has no lengths"),
    ({"bias": "all"}, "bias is 'all'"),
    ({"modules_to_save": ["lm_head"]}, "modules_to_save is \\['lm_head'\\]"),
    ({"peft_type": "IA3"}, "peft_type is 'IA3'"),
    ({"init_lora_weights": "pissa"}, "init_lora_weights is 'pissa'"),
    ({"layer_replication": [[0, 2]]}, "layer_replication"),
    ({"r": 3}, "has rank 4, adapter_config.json says 3"),
    ({"r": None}, "the rank is None"),
    ({"r": True}, "the rank is True"),
    ({"lora_alpha": "32"}, "lora_alpha is '32'"),
    ({"lora_alpha": float("nan")}, "lora_alpha is nan"),
    ({"rank_pattern": 5}, "rank_pattern is 5"),
    ({"alpha_pattern": {"(": 5}}, "alpha_pattern has the pattern '\\('"),
    ({"rank_pattern": {"(?i)q": 8}}, "rank_pattern has the pattern '\\(\\?i\\)q'"),
    ({"rank_pattern": {"a{99999999999999999999}": 8}}, "one entry for each module"),
    ({"rank_pattern": {"(" * 3000 + ")" * 3000: 8}}, "one entry for each module"),
    ({"alpha_pattern": {"(([a-z._0-9]+)+)+X": 8}}, "one entry for each module"),
    ({"exclude_modules": r".*\.0\..*"}, "exclude_modules is .* a list of module names"),
    ({"exclude_modules": [3]}, "exclude_modules is '\\[3\\]'"),
    ({"exclude_modules": [FUSED]}, "which exclude_modules in adapter_config.json leaves out"),
    ({"enable_lora": "yes"}, "enable_lora is 'yes'"),
    ({"target_modules": [FUSED, "dense_4h_to_h"]}, "lacks the tensors of dense_4h_to_h"),
]


@pytest.mark.parametrize("change, says", CONFIGS, ids=[says[:20] for _, says in CONFIGS])
def test_configurations(tmp_path, adapter, refused, change, says):
    refused(written(tmp_path / "x", adapter, **change), says)


TENSORS = [
    (lambda t: t.pop(A0), "one half only, such as .*lora_B; the file is incomplete"),
    (
        lambda t: t.update(extra=torch.ones(2)),
        "1 tensors that glmkit has no use for.*extra",
    ),
    (lambda t: t.update({A0: t[A0][:, :60]}), "made for hidden size 60.*this model has 64"),
    (lambda t: t.update({A0: t[A0][:3]}), "do not fit: A \\[3, 64\\], B \\[128, 4\\]"),
    (lambda t: t.update({A0: t[A0] * float("nan")}), "no numbers"),
    (lambda t: t.update({A0: t[A0].int()}), "holds torch.int32"),
    (
        lambda t: t.update({A0.replace("lora_A.", "lora_magnitude_vector."): torch.ones(128)}),
        "use_dora False, and .* has lengths",
    ),
    (lambda t: t.update({"base_model.model.transformer.x.bias": torch.ones(2)}), "biases"),
    (
        lambda t: t.update({"base_model.model.lm_head.modules_to_save.weight": torch.ones(2, 2)}),
        "whole modules",
    ),
    (lambda t: t.update({A0.replace(".lora_A.", ".lora_A.other."): t[A0]}), "several adapters"),
    (
        lambda t: [t.pop(key) for key in list(t) if ".layers.1." in key],
        "no query_key_value for 1 of 2 layers",
    ),
    (
        lambda t: t.update({k.replace("layers.1", "layers.7"): v for k, v in t.items()}),
        "made for 8 layers or more.*this model has 2",
    ),
    (
        lambda t: t.update({k.replace("self_attention", "attn"): v for k, v in t.items()}),
        "2 of its 4 modules do not exist",
    ),
]


@pytest.mark.parametrize("change, says", TENSORS, ids=[says[:20] for _, says in TENSORS])
def test_tensors(tmp_path, adapter, refused, change, says):
    tensors = tensors_of(adapter)
    change(tensors)
    refused(write(tmp_path / "x", tensors, config_of(adapter)), says)


class Trap:
    def __reduce__(self):
        return (open, ("trapped", "w"))


def test_a_pickled_model_runs_nothing(tmp_path, adapter, refused, monkeypatch):
    monkeypatch.chdir(tmp_path)
    torch.save(nn.Linear(2, 2), tmp_path / "chatglm-6b-lora.pt")
    refused(tmp_path / "chatglm-6b-lora.pt", "a pickle of whole Python objects", alpha=32)
    folder = write(tmp_path / "x", {}, config_of(adapter))
    (folder / "adapter_model.bin").write_bytes(pickle.dumps({"a": Trap()}))
    refused(folder, "a pickle of whole Python objects")
    assert not (tmp_path / "trapped").exists()


def test_names_as_peft_matches_them(tmp_path, adapter):
    """By their ends, at dots; dots may be escaped, ``^`` begins a whole name; the first counts."""
    first, second = adapter.parts
    tables = [
        ({FUSED: 24}, (6, 6)),
        ({first: 24}, (6, 2)),
        ({first.replace(".", "\\.") + "$": 24, FUSED: 12}, (6, 3)),
        ({"^" + first: 24, "^" + FUSED: 4}, (6, 2)),
        ({f"layers.1.self_attention.{FUSED}": 24}, (2, 6)),
        ({"key_value": 24, "ers.0." + first.partition(".0.")[2]: 24}, (2, 2)),
    ]
    for table, scales in tables:
        again = read_adapter(written(tmp_path / "x", adapter, alpha_pattern=table))
        assert (again.parts[first].scale, again.parts[second].scale) == scales, table


def test_modules_that_were_excluded_may_be_absent(tmp_path, model, adapter, refused):
    first = next(iter(adapter.parts))
    tensors = {key: each for key, each in tensors_of(adapter).items() if first not in key}
    config = config_of(adapter, target_modules=[FUSED, "dense"])
    for excluded, says in (([first], "lacks the tensors of dense"), (["dense"], "1 of 2 layers")):
        refused(write(tmp_path / "x", tensors, config | {"exclude_modules": excluded}), says)
    config["exclude_modules"] = [first.partition(".")[2], "dense", "lm_head"]
    model.load_adapter(write(tmp_path / "x", tensors, config))
    model.unload_adapter("x")


def test_files(tmp_path, adapter, refused):
    refused(tmp_path / "absent", "no such file or folder")
    refused(tmp_path, "holds no adapter; expected adapter_model.safetensors")
    folder = written(tmp_path / "x", adapter)
    whole = (folder / "adapter_model.bin").read_bytes()
    for size in (0, 10, len(whole) // 2, len(whole) - 10):
        (folder / "adapter_model.bin").write_bytes(whole[:size])
        refused(folder, "damaged")
    (folder / "adapter_model.bin").write_text("version https://git-lfs.github.com/spec/v1\n")
    refused(folder, "Git LFS pointer")
    (folder / "adapter_model.bin").write_text("a computer's name\n")
    refused(folder, "is no weight file")
    torch.save([1, 2], folder / "adapter_model.bin")
    refused(folder, "holds a list")
    torch.save({"a": 1}, folder / "adapter_model.bin")
    refused(folder, "holds a int under 'a'")
    (folder / "adapter_model.bin").unlink()
    (folder / "adapter_model.safetensors").write_bytes(b"\xff" * 100)
    refused(folder, "damaged")
    (folder / "adapter_model.safetensors").unlink()
    torch.save({A0: torch.ones(1).expand(1 << 40)}, folder / "adapter_model.bin")
    refused(folder, "its tensors claim 4,398,046,511,104 bytes")
    save_file(tensors_of(adapter), folder / "adapter_model.safetensors")
    (folder / "adapter_config.json").write_text("[]")
    refused(folder, "list instead of an object")
    (folder / "adapter_config.json").unlink()
    refused(folder, "records no alpha", UsageError)
    refused(folder, "above 0", UsageError, alpha=-1)


def test_alpha_may_not_contradict_the_file(tmp_path, adapter, refused):
    folder = written(tmp_path / "x", adapter)
    refused(folder, "says alpha 8, got alpha=32", UsageError, alpha=32)
    assert read_adapter(folder, alpha=8).parts.keys() == adapter.parts.keys()


def test_names(tmp_path, model, adapter):
    folder = written(tmp_path / "x", adapter)
    assert model.load_adapter(folder) == "x"
    try:
        with pytest.raises(UsageError, match="'x' is loaded already"):
            model.load_adapter(folder)
        with pytest.raises(UnknownNameError, match="did you mean 'x1'|known|'x'"):
            model.set_adapter("x1")
        for weight in ("much", float("nan"), True, None):
            with pytest.raises(UsageError, match="must be a number"):
                model.set_adapter({"x": weight})
        assert model.active_adapters == {"x": 1}
    finally:
        model.unload_adapter("x")


def test_prefixes(tmp_path, model, refused):
    def prefix(**kwargs):
        shape = {"layout": "chatglm3", "prefix": 4, "only_prefix": True, "files": "bin"}
        return tiny_checkpoint(tmp_path / "p", **{**shape, **kwargs})

    refused(prefix(), "has no alpha", UsageError, alpha=8)
    raw = json.loads((prefix() / "config.json").read_text())
    (tmp_path / "p" / "config.json").write_text(json.dumps(raw | {"pre_seq_len": 9}))
    refused(tmp_path / "p", "has 4 entries, config.json says pre_seq_len 9")
    refused(prefix(only_prefix=False), "whole model beside its prefix")
    refused(prefix(layout="chatglm"), "made for another model")
    tensors = torch.load(prefix(projection=True) / "pytorch_model.bin")
    tensors.pop("transformer.prefix_encoder.trans.0.bias")
    torch.save(tensors, tmp_path / "p" / "pytorch_model.bin")
    refused(tmp_path / "p", "lacks trans.0.bias")
