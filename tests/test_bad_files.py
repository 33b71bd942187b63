"""Damaged, mixed and hostile folders: one clear line each, nothing run, nothing large allocated."""

import json
import os
import resource

import pytest
import torch
from bad_parts import HEAD, config, refused
from safetensors.torch import save_file

from glmkit.cli import main
from glmkit.errors import CheckpointError
from glmkit.models.tiny import tiny_checkpoint
from glmkit.runtime.loading import load_local

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture
def folder(tmp_path):
    return tiny_checkpoint(tmp_path / "tiny", layout="chatglm3")


# ------------------------------------------------------------------------------------- config.json


@pytest.mark.parametrize(
    "change",
    [
        {"hidden_size": 10**12},
        {"num_layers": 10**6},
        {"padded_vocab_size": 2**40},
        {"ffn_hidden_size": 10**400},
        {"num_attention_heads": -4},
        {"num_layers": 0},
        {"num_layers": 2.5},
        {"num_layers": True},
        {"num_layers": "28"},
        {"hidden_size": {"a": [1]}},
        {"kv_channels": [64]},
        {"kv_channels": 7},
        {"seq_length": 10**15},
        {"layernorm_epsilon": float("nan")},
        {"layernorm_epsilon": float("inf")},
        {"rope_ratio": float("nan")},
        {"rope_ratio": -1},
        {"rope_ratio": 10**400},
        {"multi_query_group_num": 3},
        {"multi_query_group_num": None},
        {"add_qkv_bias": "yes"},
        {"tie_word_embeddings": 1},
        {"pre_seq_len": 10**9},
        {"pre_seq_len": 4, "prefix_projection": "false"},
        {"quantization_bit": 3},
        {"quantization_bit": "4"},
        {"rmsnorm": False},
        {"model_type": ["chatglm"]},
    ],
    ids=lambda change: f"{next(iter(change))}={str(next(iter(change.values())))[:9]}",
)
def test_absurd_settings_are_named(folder, change):
    config(folder, **change)
    refused(folder, r"config\.json: |pre_seq_len|quantization_bit")


def test_settings_are_named_with_the_path_of_their_file(folder, caplog):
    file = folder / "config.json"
    raw = json.loads(file.read_text()) | {"_name_or_path": ""}
    file.write_text(json.dumps(raw | {"ffn_hidden_size": "40"}))
    refused(folder, f"{file}: ffn_hidden_size is '40'")
    file.write_text(json.dumps(raw | {"quantization_bit": 3}))
    refused(folder, f"{file}: quantization_bit is 3")
    raw.pop("num_layers")
    file.write_text(json.dumps(raw))
    refused(folder, f"{file} lacks num_layers")
    assert caplog.text == "", "no family is guessed of what does not load"


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"{",
        b"\xff\xfe{}",
        b'{"a": "\xe4"}',
        b"[" * 200_000,
        b'{"a":' * 200_000,
        b"null",
        b'"glm"',
        b'{"num_layers": ' + b"9" * 5000 + b"}",
        b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n",
    ],
    ids=["empty", "cut", "utf16", "latin1", "deep", "deeper", "null", "text", "digits", "pointer"],
)
def test_a_config_that_is_none_is_named(folder, content):
    (folder / "config.json").write_bytes(content)
    refused(folder, r"config\.json")


def test_settings_of_another_model_are_refused(folder, tmp_path):
    first = tiny_checkpoint(tmp_path / "first", layout="chatglm")
    (folder / "config.json").write_bytes((first / "config.json").read_bytes())
    refused(folder, r"lacks the tensor transformer\.word_embeddings")
    hub = tiny_checkpoint(tmp_path / "hub")
    (folder / "config.json").write_bytes((hub / "config.json").read_bytes())
    refused(folder, r"lacks the tensor model\.embed_tokens")


def test_a_model_of_another_size_is_refused(folder):
    config(folder, num_layers=1)
    refused(folder, r"no place for, such as transformer\.encoder\.layers\.1")
    config(folder, num_layers=3)
    refused(folder, r"lacks the tensor transformer\.encoder\.layers\.2")
    config(folder, num_layers=2, hidden_size=128)
    refused(folder, r"has shape \[320, 64\], config\.json says \[320, 128\]")


def test_folders_that_run_in_circles_are_refused(tmp_path, folder):
    circle = tmp_path / "circle"
    circle.symlink_to(circle)
    refused(circle, "not a folder")
    for name in ("config.json", "model.safetensors"):
        kept = (folder / name).read_bytes()
        (folder / name).unlink()
        (folder / name).symlink_to(folder / name)
        refused(folder, "holds no")
        (folder / name).unlink()
        (folder / name).write_bytes(kept)
    (folder / "model.safetensors").unlink()
    (folder / "model.safetensors").mkdir()
    refused(folder, "holds no weights")


def test_a_pipe_in_place_of_a_file_does_not_wait(folder):
    (folder / "model.safetensors").unlink()
    os.mkfifo(folder / "model.safetensors")
    refused(folder, "holds no weights")


# -------------------------------------------------------------------------------- parts of a model


@pytest.mark.parametrize("files", ["bin", "safetensors"])
@pytest.mark.parametrize("layout", ["chatglm", "chatglm2"])
def test_a_prefix_alone_says_how_to_load_it(tmp_path, layout, files):
    folder = tiny_checkpoint(tmp_path, layout=layout, prefix=5, only_prefix=True, files=files)
    with pytest.raises(CheckpointError, match=r"P-Tuning prefix.*with adapter="):
        load_local(folder)


def test_prefix_and_settings_must_agree(tmp_path):
    with_prefix = tiny_checkpoint(tmp_path / "with", layout="chatglm3", prefix=5)
    without = tiny_checkpoint(tmp_path / "without", layout="chatglm3")
    config(with_prefix, pre_seq_len=None)
    refused(with_prefix, "set pre_seq_len")
    config(without, pre_seq_len=5)
    refused(without, "load the prefix with adapter=")
    config(with_prefix, pre_seq_len=6)
    refused(with_prefix, r"\[5, 128\], config\.json says \[6, 128\]")


def test_an_adapter_says_how_to_load_it(folder):
    lora = {"base_model.model.x.lora_A.weight": torch.ones(2, 2)}
    save_file(lora, folder / "model.safetensors")
    refused(folder, r"LoRA adapter.*with adapter=")
    (folder / "model.safetensors").unlink()
    (folder / "adapter_config.json").write_text("{}")
    with pytest.raises(CheckpointError, match="LoRA adapter.*with adapter="):
        load_local(folder)
    (folder / "config.json").unlink()
    with pytest.raises(CheckpointError, match="LoRA adapter.*with adapter="):
        load_local(folder)


# ---------------------------------------------------------------------------------- command line


@pytest.mark.parametrize(
    "spoil",
    [
        lambda folder: (folder / "model.safetensors").write_bytes(b"x" * 100),
        lambda folder: (folder / "model.safetensors").unlink(),
        lambda folder: (folder / "config.json").write_bytes(b"\xff"),
        lambda folder: config(folder, num_layers=10**12),
        lambda folder: (folder / "tokenizer.json").write_text("{}"),
        lambda folder: (folder / "generation_config.json").write_text("["),
        lambda folder: (folder / "glmkit.json").write_text('{"languages": 5}'),
        lambda folder: (folder / "glmkit.json").write_text('{"chat_format": ["chatml"]}'),
        lambda folder: (folder / "glmkit.json").write_text('{"system": 5}'),
        lambda folder: (folder / "glmkit.json").write_text('{"system": "a\\ud800"}'),
        lambda folder: (folder / "glmkit.json").write_text('{"languages": ["\\ud800"]}'),
    ],
    ids=[
        "noise",
        "gone",
        "bytes",
        "absurd",
        "vocabulary",
        "sampling",
        "languages",
        "format",
        "sys",
        "half",
        "halves",
    ],
)
def test_the_command_line_says_it_in_one_line(folder, spoil, capfd):
    spoil(folder)
    assert main(["--no-plugins", "run", "chat", "--model", str(folder), "--ask", "hi"]) == 1
    said = capfd.readouterr().err.strip()
    assert said.startswith("error: ") and "\n" not in said


def test_absurd_sizes_allocate_nothing(folder, forks):
    """A config that claims 10^11 numbers is refused within the memory that importing takes."""
    config(folder, padded_vocab_size=1 << 20, hidden_size=1 << 15, num_layers=400)
    code = """
        import resource, sys, torch
        from pathlib import Path
        from glmkit.errors import CheckpointError
        from glmkit.runtime.loading import load_local
        from glmkit.runtime.describe import describe

        def peak():
            return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss

        torch.nn.Linear(8, 8)(torch.ones(8))
        start = peak()
        for act in (load_local, describe):
            try:
                act(Path(sys.argv[1]))
            except CheckpointError as error:
                print(error)
        print((peak() - start) // 1024)
    """
    *errors, grown = forks.run(code, folder).splitlines()
    assert len(errors) == 2 and all("different models" in each for each in errors)
    assert int(grown) < 100, "MB"


def test_a_pickle_that_claims_too_much_allocates_nothing(folder):
    tensor = torch.zeros(1).expand(1 << 20, 1 << 15)
    (folder / "model.safetensors").unlink()
    torch.save({HEAD: tensor}, folder / "pytorch_model.bin")
    config(folder, padded_vocab_size=1 << 20, hidden_size=1 << 15)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    refused(folder, "claim")
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 100 << 10
