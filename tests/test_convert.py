"""Conversion between the original layout and Hugging Face's, checked bit for bit."""

import json
import shutil

import numpy as np
import pytest
import torch
from click.testing import CliRunner

import glmkit
from glmkit.cli import cli
from glmkit.console import drain
from glmkit.errors import CheckpointError, GlmkitError, UsageError
from glmkit.models.tiny import tiny_checkpoint
from glmkit.runtime import convert as module
from glmkit.runtime.convert import convert
from glmkit.runtime.weights import Weights

pytestmark = pytest.mark.usefixtures("one_thread")

ORIGINAL = ("chatglm2", "chatglm3", "glm4-9b")
REFERENCE = ("chatglm2-6b-tiny", "chatglm3-6b-tiny", "glm-4-9b-tiny")


def to_hub(path, out, **options):
    return drain(convert(path, out, to="hf", **options))


def to_original(path, out, **options):
    return drain(convert(path, out, to="original", **options))


def raw_bytes(folder):
    weights = Weights(folder)
    return {
        key: (weights[key].dtype, weights[key].contiguous().view(torch.uint8).numpy().tobytes())
        for key in weights
    }


def config_of(folder):
    return json.loads((folder / "config.json").read_text(encoding="utf-8"))


def change_config(folder, **change):
    (folder / "config.json").write_text(json.dumps(config_of(folder) | change), encoding="utf-8")


def logits_of_transformers(folder, ids, **options):
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    with torch.inference_mode():
        return model(input_ids=ids, **options).logits


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("layout", ORIGINAL)
def test_there_and_back_is_bit_for_bit(tmp_path, layout, dtype):
    start = tiny_checkpoint(tmp_path / "start", layout=layout, dtype=dtype)
    there = to_hub(start, tmp_path / "hub", shard_bytes=50_000)
    back = to_original(there.path, tmp_path / "back")
    assert raw_bytes(back.path) == raw_bytes(start)
    assert config_of(back.path) == config_of(start)
    assert there.size == back.size == sum(len(data) for _, data in raw_bytes(start).values())
    assert len(list(there.path.glob("model-*-of-*.safetensors"))) > 3


@pytest.mark.parametrize("layout", ORIGINAL)
def test_transformers_and_glmkit_compute_the_same_from_both(tmp_path, layout):
    start = tiny_checkpoint(tmp_path / "start", layout=layout)
    hub = to_hub(start, tmp_path / "hub").path
    back = to_original(hub, tmp_path / "back").path
    ids = torch.randint(3, 300, (2, 19), generator=torch.Generator().manual_seed(1))
    wanted = glmkit.load(start, dtype="float32").logits(ids)
    assert torch.equal(glmkit.load(hub, dtype="float32").logits(ids), wanted)
    assert torch.equal(glmkit.load(back, dtype="float32").logits(ids), wanted)
    assert (logits_of_transformers(hub, ids) - wanted).abs().max() <= 1e-4


def test_stretched_positions_become_linear_scaling(tmp_path):
    start = tiny_checkpoint(tmp_path / "start", layout="chatglm2")
    change_config(start, _name_or_path="THUDM/chatglm2-6b-32k", rope_ratio=16)
    hub = to_hub(start, tmp_path / "hub").path
    rope = config_of(hub)["rope_parameters"]
    assert (rope["rope_type"], rope["factor"], rope["rope_theta"]) == ("linear", 16, 10_000)
    ids = torch.arange(3, 203)[None]
    wanted = glmkit.load(start, dtype="float32").logits(ids)
    assert (logits_of_transformers(hub, ids) - wanted).abs().max() <= 1e-4
    shutil.rmtree(hub / "original")
    back = to_original(hub, tmp_path / "back").path
    assert config_of(back)["rope_ratio"] == 16
    assert torch.equal(glmkit.load(back, dtype="float32").logits(ids), wanted)


@pytest.mark.parametrize("layout", ORIGINAL)
def test_a_foreign_folder_gets_a_new_config(tmp_path, layout):
    start = tiny_checkpoint(tmp_path / "start", layout=layout)
    hub = to_hub(start, tmp_path / "hub").path
    shutil.rmtree(hub / "original")
    back = to_original(hub, tmp_path / "back").path
    made, wanted = config_of(back), config_of(start)
    assert {key: made[key] for key in wanted if key not in ("_name_or_path", "rope_ratio")} == {
        key: wanted[key] for key in wanted if key not in ("_name_or_path", "rope_ratio")
    }
    assert made["rope_ratio"] == wanted.get("rope_ratio", 1)
    assert raw_bytes(back) == raw_bytes(start)


def test_what_was_changed_after_the_conversion_wins_over_what_was_kept(tmp_path):
    start = tiny_checkpoint(tmp_path / "start", layout="chatglm3")
    change_config(start, seen_by="nobody")
    hub = to_hub(start, tmp_path / "hub").path
    change_config(hub, max_position_embeddings=1024, eos_token_id=[2, 5])
    back = config_of(to_original(hub, tmp_path / "back").path)
    assert (back["seq_length"], back["eos_token_id"], back["seen_by"]) == (1024, [2, 5], "nobody")


def test_a_tied_head_stays_tied(tmp_path):
    start = tiny_checkpoint(tmp_path / "start", layout="hub", tied=True)
    original = to_original(start, tmp_path / "original").path
    ids = torch.arange(3, 40)[None]
    wanted = glmkit.load(start, dtype="float32").logits(ids)
    assert torch.equal(glmkit.load(original, dtype="float32").logits(ids), wanted)
    assert raw_bytes(to_hub(original, tmp_path / "hub").path) == raw_bytes(start)


@pytest.mark.parametrize("name", REFERENCE)
def test_logits_are_those_of_the_original_code(tmp_path, shared_reference, name):
    start = shared_reference / "checkpoints" / name
    hub = to_hub(start, tmp_path / "hub").path
    expected = np.load(shared_reference / "expected" / f"{name}.npz")
    for case in ("prompt_len5", "prompt_len40"):
        ids = torch.from_numpy(expected[f"{case}.input_ids"])
        wanted = torch.from_numpy(expected[f"{case}.logits"])
        assert (logits_of_transformers(hub, ids) - wanted).abs().max() <= 1e-4
    fields = ("input_ids", "attention_mask", "position_ids", "logits")
    ids, mask, positions, wanted = (
        torch.from_numpy(expected[f"batch_leftpad.{each}"]) for each in fields
    )
    got = logits_of_transformers(hub, ids, attention_mask=mask, position_ids=positions)
    assert (got - wanted)[mask.bool()].abs().max() <= 1e-4
    back = to_original(hub, tmp_path / "back").path
    assert raw_bytes(back) == raw_bytes(start)
    assert config_of(back) == config_of(start)


def test_the_family_goes_along(tmp_path):
    start = tiny_checkpoint(tmp_path / "a-model", layout="chatglm2")
    change_config(start, _name_or_path="")
    hub = to_hub(start, tmp_path / "hub", family="chatglm2").path
    assert json.loads((hub / "glmkit.json").read_text())["family"] == "chatglm2"
    shutil.rmtree(hub / "original")
    back = to_original(hub, tmp_path / "back").path
    assert "chatglm2" in config_of(back)["_name_or_path"]


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"layout": "chatglm"}, "glmkit.hf"),
        ({"layout": "chatglm3", "prefix": 4}, "P-Tuning"),
        ({"layout": "hub"}, "needs no conversion"),
    ],
)
def test_what_hugging_faces_layout_cannot_hold_is_refused(tmp_path, options, said):
    start = tiny_checkpoint(tmp_path / "start", **options)
    with pytest.raises(GlmkitError, match=said):
        to_hub(start, tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"quantization_bit": 4}, "quantised"),
        ({"add_bias_linear": True}, "add_bias_linear"),
        ({"rmsnorm": False}, "rmsnorm"),
        ({"num_layers": 1}, "no place"),
        ({"ffn_hidden_size": 100}, "shape"),
    ],
)
def test_variants_and_mixed_files_are_refused(tmp_path, change, said):
    start = tiny_checkpoint(tmp_path / "start", layout="chatglm3")
    change_config(start, **change)
    with pytest.raises(CheckpointError, match=said):
        to_hub(start, tmp_path / "out")
    assert [each.name for each in tmp_path.iterdir()] == ["start"]


def test_what_the_original_layout_cannot_hold_is_refused(tmp_path):
    start = tiny_checkpoint(tmp_path / "start", layout="hub")
    rope = config_of(start)["rope_parameters"]
    change_config(start, rope_parameters=rope | {"partial_rotary_factor": 0.25})
    with pytest.raises(CheckpointError, match="always half"):
        to_original(start, tmp_path / "out")
    both = rope | {"rope_type": "linear", "factor": 4.0, "rope_theta": 20_000.0}
    change_config(start, rope_parameters=both)
    with pytest.raises(CheckpointError, match="at once"):
        to_original(start, tmp_path / "out")


def test_an_adapter_is_sent_to_merging(tmp_path):
    (tmp_path / "adapter_config.json").write_text("{}")
    with pytest.raises(CheckpointError, match="glmkit adapters merge"):
        to_hub(tmp_path, tmp_path.parent / "out")


def test_a_folder_that_holds_something_is_replaced_only_on_demand(tmp_path):
    start = tiny_checkpoint(tmp_path / "start", layout="chatglm3")
    out = tmp_path / "out"
    out.mkdir()
    to_hub(start, out)
    (out / "mine.txt").write_text("precious")
    with pytest.raises(UsageError, match="--force"):
        to_hub(start, out)
    assert (out / "mine.txt").read_text() == "precious"
    to_hub(start, out, force=True)
    assert not (out / "mine.txt").exists() and (out / "config.json").is_file()
    assert sorted(each.name for each in tmp_path.iterdir()) == ["out", "start"]


@pytest.mark.parametrize("place", ["start", "start/inside", "."])
def test_source_and_target_may_not_lie_in_each_other(tmp_path, place):
    start = tiny_checkpoint(tmp_path / "start", layout="chatglm3")
    before = raw_bytes(start)
    with pytest.raises(UsageError, match="in each other|is what is read"):
        to_hub(start, tmp_path / place, force=True)
    assert raw_bytes(start) == before


def test_a_conversion_that_is_given_up_leaves_nothing(tmp_path):
    start = tiny_checkpoint(tmp_path / "start", layout="chatglm3")
    work = convert(start, tmp_path / "out", to="hf")
    next(work)
    assert (tmp_path / ".out.partial").is_dir() and not (tmp_path / "out").exists()
    with pytest.raises(UsageError, match="another process"):
        to_hub(start, tmp_path / "out")
    work.close()
    assert [each.name for each in tmp_path.iterdir()] == ["start"]


def test_a_killed_run_never_looks_complete_and_the_next_one_cleans_up(tmp_path, forks):
    start = tiny_checkpoint(tmp_path / "start", layout="chatglm3")
    code = """
        import os, sys
        from pathlib import Path
        from glmkit.runtime.convert import convert

        work = convert(Path(sys.argv[1]), Path(sys.argv[2]), to="hf")
        next(work)
        os.kill(os.getpid(), 9)
    """
    out = tmp_path / "out"
    assert forks.start(code, start, out).wait() == -9
    assert not out.exists() and (tmp_path / ".out.partial").is_dir()
    to_hub(start, out)
    assert sorted(each.name for each in tmp_path.iterdir()) == ["out", "start"]


def test_too_little_room_is_said_before_anything_is_written(tmp_path, monkeypatch):
    start = tiny_checkpoint(tmp_path / "start", layout="chatglm3")
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda folder: usage._replace(free=1000))
    with pytest.raises(GlmkitError, match="MB more room"):
        to_hub(start, tmp_path / "out")
    assert [each.name for each in tmp_path.iterdir()] == ["start"]


def test_files_are_mapped_anew_without_a_difference(tmp_path, monkeypatch):
    monkeypatch.setattr(module, "_REMAP_AFTER", 1)
    start = tiny_checkpoint(tmp_path / "start", layout="chatglm2", files="bin")
    hub = to_hub(start, tmp_path / "hub").path
    assert raw_bytes(to_original(hub, tmp_path / "back").path) == raw_bytes(start)


def test_the_command_converts(tmp_path):
    start = tiny_checkpoint(tmp_path / "start", layout="chatglm3")
    given = ["convert", str(start), str(tmp_path / "hub"), "--to", "hf"]
    done = CliRunner().invoke(cli, given)
    assert done.exit_code == 0, done.output
    assert f"{len(Weights(tmp_path / 'hub'))} tensors" in done.output
    assert config_of(tmp_path / "hub")["architectures"] == ["GlmForCausalLM"]
    again = CliRunner().invoke(cli, given)
    assert isinstance(again.exception, UsageError)
