"""What `describe` says of folders, by headers alone."""

import json
from dataclasses import asdict

import pytest
import torch
from safetensors.torch import save_file

from glmkit.commands.showing import amount, count, lines
from glmkit.errors import CheckpointError
from glmkit.models.tiny import ORIGINAL, tiny_checkpoint
from glmkit.runtime.describe import describe
from glmkit.runtime.loading import load_local
from glmkit.runtime.quantize import quantize_int4, quantize_int8

pytestmark = pytest.mark.usefixtures("one_thread")

LAYOUTS = {
    "hub": "glm",
    "chatglm": "chatglm",
    "chatglm2": "chatglm2",
    "chatglm3": "chatglm3",
    "glm4-9b": "glm4",
}


def held(model):
    """Count the bytes that a loaded model holds."""
    found = {each.data_ptr(): each for each in model.parameters()}
    return sum(each.numel() * each.element_size() for each in found.values())


@pytest.mark.parametrize("files", ["safetensors", "bin"])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_model(tmp_path, layout, files):
    folder = tiny_checkpoint(tmp_path, layout=layout, files=files, dtype=torch.float16)
    about = describe(folder)
    assert (about.kind, about.family) == ("model", LAYOUTS[layout])
    for dtype in ("float32", "float16"):
        model = load_local(folder, dtype=dtype).model
        assert about.memory.weights[dtype] == held(model)
    assert about.weights.numbers == {"float16": about.parameters}
    assert (about.weights.format, len(about.weights.files)) == (files, 1)
    assert about.context_length == 512 and about.sizes.layers == 2
    config = model.config
    numbers = 2 * config.layers * config.kv_heads * config.head_dim
    assert about.memory.cache_per_1000_tokens == {
        "float32": 4_000 * numbers,
        "float16": 2_000 * numbers,
    }
    assert about.vocabulary.size > 256 and about.vocabulary.kind == "tokenizer.json"
    assert about.prefix is about.quantised is about.adapter is None
    assert json.loads(json.dumps(asdict(about)))["sizes"]["head_dim"] == 16


@pytest.mark.parametrize("projection", [False, True])
@pytest.mark.parametrize("layout", ORIGINAL[:3])
def test_prefixes(tmp_path, layout, projection):
    whole = tiny_checkpoint(
        tmp_path / "whole", layout=layout, prefix=7, projection=projection, dtype=torch.float16
    )
    about = describe(whole)
    held_by = load_local(whole, dtype="float16").model
    prefix = sum(each.numel() for each in held_by.prefix.parameters())
    assert (about.prefix.length, about.prefix.projection) == (7, projection)
    assert about.prefix.parameters == prefix and about.weights.numbers["float32"] == prefix
    assert about.memory.weights["float16"] == held(held_by)
    alone = tiny_checkpoint(
        tmp_path / "alone", layout=layout, prefix=7, projection=projection, only_prefix=True
    )
    said = describe(alone)
    assert said.kind == "prefix" and said.prefix == about.prefix
    assert any("as the adapter" in note for note in said.notes)


def test_a_prefix_that_does_not_fit_its_settings(tmp_path):
    alone = tiny_checkpoint(tmp_path, layout="chatglm2", prefix=7, only_prefix=True)
    raw = json.loads((alone / "config.json").read_text())
    (alone / "config.json").write_text(json.dumps(raw | {"num_layers": 3}))
    with pytest.raises(CheckpointError, match=r"\[7, 128\], config\.json says \[7, 192\]"):
        describe(alone)


def test_vocabularies_and_other_models(tmp_path):
    folder = tiny_checkpoint(tmp_path / "tiny")
    (folder / "config.json").unlink()
    with pytest.raises(CheckpointError, match=r"holds no config\.json"):
        describe(folder)
    (folder / "model.safetensors").unlink()
    about = describe(folder)
    assert about.kind == "vocabulary" and about.vocabulary.size > 256
    assert list(lines(about))[1] == "holds           a vocabulary without a model"
    with pytest.raises(CheckpointError, match="a vocabulary alone"):
        load_local(folder)
    (folder / "config.json").write_text('{"model_type": "glm"}')
    with pytest.raises(CheckpointError, match="lacks head_dim"):
        describe(folder)


LLAMA = {
    "model_type": "llama",
    "num_hidden_layers": 2,
    "hidden_size": 8,
    "intermediate_size": 16,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "vocab_size": 32,
    "max_position_embeddings": 64,
}


def test_a_model_that_transformers_runs(tmp_path):
    (tmp_path / "config.json").write_text(json.dumps(LLAMA))
    bare = describe(tmp_path)
    assert (bare.kind, bare.architecture, bare.engine) == ("other", "llama", "transformers")
    assert bare.weights is bare.parameters is bare.memory is bare.vocabulary is None
    save_file({"a": torch.ones(10, 8), "b": torch.ones(5)}, tmp_path / "model.safetensors")
    table = {"model": {"vocab": {"a": 0, "b": 1}}, "added_tokens": [{"content": "<s>"}]}
    (tmp_path / "tokenizer.json").write_text(json.dumps(table))
    about = describe(tmp_path)
    assert (about.parameters, about.context_length, about.vocabulary.size) == (85, 64, 3)
    assert about.memory.weights == {"float32": 340, "bfloat16": 170}
    assert about.memory.cache_per_1000_tokens["float32"] == 4 * 2 * 2 * 2 * 2 * 1000
    said = "\n".join(lines(about))
    assert "\nruns with       the transformers engine\n" in said
    assert "4 heads of 2 sharing 2 key/value heads, 32 token rows" in said
    (tmp_path / "config.json").write_text('{"model_type": "gpt2", "n_inner": null}')
    assert describe(tmp_path).sizes is None
    (tmp_path / "config.json").write_text('{"model_type": "nobody", "auto_map": {}}')
    unknown = describe(tmp_path)
    assert unknown.engine is None and "own code" in unknown.notes[0]
    assert "\nruns with       nothing here\n" in "\n".join(lines(unknown))


def test_parts_of_models_are_named(tmp_path):
    torch.save({"a.lora_A": torch.ones(1)}, tmp_path / "raw.pt")
    for act in (load_local, describe):
        for path in (tmp_path, tmp_path / "raw.pt"):
            with pytest.raises(CheckpointError, match=r"glmkit adapters show .*raw\.pt"):
                act(path)
    (tmp_path / "raw.pt").unlink()
    for act in (load_local, describe):
        with pytest.raises(CheckpointError, match="is an empty folder"):
            act(tmp_path)
    save_file({"a.lora_A": torch.ones(1)}, tmp_path / "adapter_model.safetensors")
    for act in (load_local, describe):
        with pytest.raises(CheckpointError, match="holds a LoRA adapter, not a model"):
            act(tmp_path)


def test_an_adapter(tmp_path):
    table = {
        "peft_type": "LORA",
        "r": 4,
        "lora_alpha": 8,
        "target_modules": ["query_key_value"],
        "base_model_name_or_path": "THUDM/chatglm3-6b",
    }
    (tmp_path / "adapter_config.json").write_text(json.dumps(table))
    stem = "base_model.model.transformer.encoder.layers.0.self_attention.query_key_value"
    halves = {
        f"{stem}.lora_A.weight": torch.ones(4, 64),
        f"{stem}.lora_B.weight": torch.ones(128, 4),
    }
    save_file(halves, tmp_path / "adapter_model.safetensors")
    about = describe(tmp_path)
    assert about.kind == "adapter" and about.family is None
    assert (about.adapter.ranks, about.adapter.modules) == ((4,), ("query_key_value",))
    assert (about.adapter.parameters, about.adapter.base) == (768, "THUDM/chatglm3-6b")
    said = "\n".join(lines(about))
    assert "\nrank            4 on query_key_value\n" in said
    model = tiny_checkpoint(tmp_path, layout="chatglm3")
    assert "an adapter beside the weights" in " ".join(describe(model).notes)


def test_memory_after_quantising_is_foretold(tmp_path):
    folder = tiny_checkpoint(tmp_path, layout="chatglm3", dtype=torch.float16)
    model = load_local(folder, dtype="float16").model
    table = model.get_submodule(model.EMBEDDING).weight
    taken = {"int8": 2 * table.numel(), "int4": 2 * table.numel()}
    for stem, module in model.named_modules():
        for leaf, each in module.named_parameters(recurse=False):
            linear = isinstance(module, torch.nn.Linear) and leaf == "weight"
            for how in taken if each is not table else ():
                rounds = quantize_int4 if how == "int4" and stem != model.HEAD else quantize_int8
                taken[how] += _bytes(rounds(each)) if linear else 2 * each.numel()
    foretold = describe(folder).memory.weights
    assert {how: foretold[how] for how in taken} == taken


def _bytes(weight):
    return sum(each.numel() * each.element_size() for each in vars(weight).values())


def test_official_quantised_folders(shared_reference):
    for name, bits, embeddings in (
        ("chatglm-6b-tiny-int4", 4, False),
        ("chatglm-6b-tiny-int8", 8, False),
        ("chatglm-6b-tiny-int4-qe", 4, True),
        ("chatglm2-6b-tiny-int4", 4, False),
        ("chatglm2-6b-tiny-int8", 8, False),
    ):
        found = describe(shared_reference / "checkpoints" / name).quantised
        assert (found.bits, found.format, found.embeddings) == (bits, "official", embeddings)
        linears = {"dense", "dense_4h_to_h", "dense_h_to_4h", "query_key_value"}
        assert set(found.linears) == linears | ({"lm_head"} if embeddings else set())


def test_every_reference_folder_is_described(shared_reference):
    for folder in sorted((shared_reference / "checkpoints").iterdir()):
        about = describe(folder)
        generation = folder.name.replace("glm-4-9b", "glm4").replace("-6b", "").split("-")[0]
        assert about.family == generation and about.family_certain
        assert about.kind == ("prefix" if "ptuning" in folder.name else "model")
    for folder in sorted((shared_reference / "tokenizers").iterdir()):
        assert describe(folder).kind == "vocabulary"


def test_the_embedded_default(default_model_path):
    about = describe(default_model_path)
    assert (about.family, about.parameters) == ("llama", 134_515_008)
    assert (about.quantised.bits, about.quantised.format) == (4, "glmkit")


def test_numbers_for_people():
    assert [amount(each) for each in (7, 7_000, 12_340_000, 12_340_000_000)] == [
        "7 bytes",
        "7.0 kB",
        "12.3 MB",
        "12.3 GB",
    ]
    assert [count(each) for each in (7_000, 1_500_000, 6_243_584_000)] == [
        "7,000",
        "1.50 million",
        "6.24 billion",
    ]
