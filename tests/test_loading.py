import json
import os
import pickle
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from glmkit.errors import CheckpointError, UsageError
from glmkit.models.tiny import tiny_checkpoint
from glmkit.runtime.loading import load_local, physical_cores

IDS = torch.tensor([[5, 60, 7]])


@pytest.fixture
def folder(tmp_path):
    return tiny_checkpoint(tmp_path / "tiny")


def tensors(folder):
    return load_file(folder / "model.safetensors")


def rewritten(folder, change):
    changed = change({key: value.clone() for key, value in tensors(folder).items()})
    save_file(changed, folder / "model.safetensors")


def sharded(folder, suffix):
    """Cut the weights into two files with an index."""
    found = tensors(folder)
    names = sorted(found)
    kind = "model" if suffix == "safetensors" else "pytorch_model"
    table = {}
    for at, part in enumerate((names[::2], names[1::2]), 1):
        file = f"{kind}-0000{at}-of-00002.{suffix}"
        table |= dict.fromkeys(part, file)
        chosen = {name: found[name].clone() for name in part}
        if suffix == "bin":
            torch.save(chosen, folder / file)
        else:
            save_file(chosen, folder / file)
    (folder / f"{kind}.{suffix}.index.json").write_text(json.dumps({"weight_map": table}))
    (folder / "model.safetensors").unlink()


@pytest.mark.parametrize("suffix", ["safetensors", "bin"])
def test_shards_give_the_same_model(folder, suffix):
    whole = load_local(folder).logits(IDS)
    sharded(folder, suffix)
    assert torch.equal(load_local(folder).logits(IDS), whole)


@pytest.mark.parametrize("old", [False, True])
def test_a_single_bin_file_loads(folder, old):
    whole = load_local(folder).logits(IDS)
    torch.save(
        tensors(folder), folder / "pytorch_model.bin", _use_new_zipfile_serialization=not old
    )
    (folder / "model.safetensors").unlink()
    assert torch.equal(load_local(folder).logits(IDS), whole)


def test_weights_are_mapped_not_copied(folder):
    model = load_local(folder).model
    weight = model.transformer.encoder.layers[0].mlp.dense_h_to_4h.weight
    mapped = weight.data_ptr()
    maps = Path("/proc/self/maps")
    if not maps.exists():
        pytest.skip("this system does not show memory maps")
    ranges = [
        [int(each, 16) for each in line.split()[0].split("-")]
        for line in maps.read_text().splitlines()
        if line.endswith("model.safetensors")
    ]
    assert any(low <= mapped < high for low, high in ranges)


@pytest.mark.parametrize("suffix", ["safetensors", "bin"])
def test_a_missing_shard_is_named(folder, suffix):
    sharded(folder, suffix)
    gone = next(folder.glob(f"*-00002-of-00002.{suffix}"))
    gone.unlink()
    with pytest.raises(CheckpointError, match=gone.name):
        load_local(folder)


@pytest.mark.parametrize("kept", [0, 4, 100, -200])
@pytest.mark.parametrize("suffix", ["safetensors", "bin"])
def test_a_cut_file_is_named(folder, suffix, kept):
    file = folder / "model.safetensors"
    if suffix == "bin":
        torch.save(tensors(folder), folder / "pytorch_model.bin")
        file.unlink()
        file = folder / "pytorch_model.bin"
    content = file.read_bytes()
    file.write_bytes(content[:kept])
    with pytest.raises(CheckpointError, match=file.name):
        load_local(folder)


class Attack:
    def __init__(self, target):
        self.target = target

    def __reduce__(self):
        return os.mkdir, (self.target,)


@pytest.mark.parametrize("whole", [True, False])
def test_code_in_a_bin_file_never_runs(folder, tmp_path, whole):
    target = str(tmp_path / "hacked")
    (folder / "model.safetensors").unlink()
    file = folder / "pytorch_model.bin"
    if whole:
        file.write_bytes(pickle.dumps(Attack(target), protocol=2))
    else:
        torch.save({"a": Attack(target)}, file)
    with pytest.raises(CheckpointError, match="runs no code"):
        load_local(folder)
    assert not os.path.exists(target)


def test_an_index_that_leaves_the_folder_is_refused(folder):
    (folder / "model.safetensors").unlink()
    table = {"weight_map": {"a": "../elsewhere.safetensors"}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(table))
    with pytest.raises(CheckpointError, match="out of the folder"):
        load_local(folder)


@pytest.mark.parametrize("text", ["", "{", "[]", '"glm"', "\xff", "[" * 100_000])
def test_a_damaged_config_is_named(folder, text):
    (folder / "config.json").write_text(text, encoding="latin-1")
    with pytest.raises(CheckpointError, match=r"config\.json"):
        load_local(folder)


def test_folders_that_are_none(tmp_path, folder):
    with pytest.raises(CheckpointError, match="not a folder"):
        load_local(tmp_path / "absent")
    with pytest.raises(CheckpointError, match="not a model folder"):
        load_local(tmp_path)
    (folder / "model.safetensors").unlink()
    with pytest.raises(CheckpointError, match="holds no weights"):
        load_local(folder)


def test_missing_left_over_and_misshapen_tensors_are_refused(folder):
    good = (folder / "model.safetensors").read_bytes()

    def without_one(found):
        del found["model.layers.1.mlp.down_proj.weight"]
        return found

    rewritten(folder, without_one)
    with pytest.raises(CheckpointError, match=r"lacks the tensor model\.layers\.1"):
        load_local(folder)
    (folder / "model.safetensors").write_bytes(good)
    rewritten(folder, lambda found: {**found, "model.layers.9.extra": torch.ones(2)})
    with pytest.raises(CheckpointError, match=r"model\.layers\.9\.extra"):
        load_local(folder)
    (folder / "model.safetensors").write_bytes(good)
    rewritten(folder, lambda found: {**found, "model.norm.weight": torch.ones(65)})
    with pytest.raises(CheckpointError, match=r"\[65\].*\[64\]"):
        load_local(folder)


def test_an_absurd_config_allocates_nothing(folder):
    raw = json.loads((folder / "config.json").read_text())
    raw |= {"vocab_size": 1 << 20, "hidden_size": 1 << 15, "num_hidden_layers": 400}
    (folder / "config.json").write_text(json.dumps(raw))
    with pytest.raises(CheckpointError, match="different models"):
        load_local(folder)


@pytest.mark.parametrize("stored", [torch.float16, torch.bfloat16])
def test_half_precision_weights_load(tmp_path, stored):
    folder = tiny_checkpoint(tmp_path, dtype=stored)
    assert load_local(folder).logits(IDS).dtype == torch.float32
    assert torch.isfinite(load_local(folder, dtype="bf16").logits(IDS)).all()


def test_a_tied_head_is_the_embedding(tmp_path):
    model = load_local(tiny_checkpoint(tmp_path, tied=True)).model.transformer
    assert model.output_layer.weight.data_ptr() == model.embedding.word_embeddings.weight.data_ptr()


def test_without_a_vocabulary_it_still_scores(tmp_path):
    model = load_local(tiny_checkpoint(tmp_path, vocabulary=False))
    assert model.logits(IDS).shape == (1, 3, 320)
    assert len(model.generate_ids([5, 6], 4)) == 4
    for chat in (model.stream, model.reply):
        with pytest.raises(CheckpointError, match="no vocabulary"):
            chat([{"role": "user", "content": "hello"}])


def test_a_foreign_or_damaged_vocabulary_is_refused(folder):
    file = folder / "tokenizer.json"
    good = file.read_text()
    file.write_text(good[: len(good) // 2])
    with pytest.raises(CheckpointError, match=r"tokenizer\.json"):
        load_local(folder)
    table = json.loads(good)
    table["model"]["vocab"] |= {f"extra{at}": 400 + at for at in range(200)}
    file.write_text(json.dumps(table))
    with pytest.raises(CheckpointError, match="another model"):
        load_local(folder)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ({"dtype": "float8"}, "float32"),
        ({"device": "abacus"}, "abacus"),
        ({"adapter_alpha": 32.0}, "without an adapter"),
    ],
)
def test_bad_arguments_are_usage_errors(folder, arguments, said):
    with pytest.raises(UsageError, match=said):
        load_local(folder, **arguments)


def test_names_and_languages(folder):
    assert load_local(folder).name == "tiny"
    assert load_local(folder).languages is None
    named = load_local(folder, name="mine", languages=frozenset({"zh"}))
    assert (named.name, named.languages) == ("mine", {"zh"})


def test_moving_the_folder_needs_no_network_or_cache(folder, tmp_path):
    moved = shutil.move(folder, tmp_path / "elsewhere")
    assert load_local(moved).reply([{"role": "user", "content": "hi"}]).usage.prompt_tokens > 2


def test_cores_are_counted():
    assert 1 <= physical_cores() <= (os.cpu_count() or 1)
